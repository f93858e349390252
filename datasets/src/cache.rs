//! The user's cache folder.

use std::{env, path::PathBuf};

/// Returns the folder `hearth/KIND` in the user's cache folder: `$XDG_CACHE_HOME`, else `~/.cache`, else `%LOCALAPPDATA%`.
/// `None` if the environment names none of them by an absolute path, as the XDG specification requires.
pub fn cache_folder(kind: &str) -> Option<PathBuf> {
    let folder = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let user =
        folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache"))).or_else(|| folder("LOCALAPPDATA"))?;
    Some(user.join("hearth").join(kind))
}
