//! What may change when a run is resumed, and where the files of its recipe are.

use std::{collections::BTreeMap, path::Path};

use datasets::BadSamples;
use report::format::RunChange;

use crate::recipe::{Data, Decay, Recipe};

pub const TRAIN: &str = "data.train";
const VALID: &str = "data.valid";
const IMAGES_ROOT: &str = "data.images_root";
pub const QUARANTINE: &str = "data.quarantine";
const BAD_SAMPLES: &str = "data.bad_samples";
const WEIGHTS: &str = "transfer.weights";
const EPOCHS: &str = "epochs";

/// A change of a recipe's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: &'static str,
    pub from: String,
    pub to: String,
}

impl Change {
    /// The change as `run.json` records it, after `step` steps, in the epoch with this number, from 1.
    pub fn at(self, step: u64, epoch: usize) -> RunChange {
        let Self { key, from, to } = self;
        RunChange { step, epoch, key: key.to_string(), from, to }
    }
}

/// Returns what differs between the recipe that a run has followed and the one that it is resumed with: where the data
/// is, which images are left out, and the number of epochs.
///
/// # Errors
/// If anything else differs: the lines that do.
pub fn between(before: &Recipe, after: &Recipe) -> Result<Vec<Change>, String> {
    let mut allowed = before.clone();
    allowed.epochs = after.epochs;
    let Data { train, valid, images_root, quarantine, bad_samples, .. } = after.data.clone();
    allowed.data = Data { train, valid, images_root, quarantine, bad_samples, ..allowed.data };
    if allowed != *after {
        return Err(line_difference(&allowed.to_toml(), &after.to_toml()));
    }
    let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_string());
    let policy = |policy: BadSamples| {
        match policy {
            BadSamples::Strict => "strict",
            BadSamples::Warn => "warn",
            BadSamples::Skip => "skip",
            BadSamples::Substitute => "substitute",
        }
        .to_string()
    };
    let (old, new) = (&before.data, &after.data);
    let all = [
        (TRAIN, old.train.clone(), new.train.clone()),
        (VALID, shown(&old.valid), shown(&new.valid)),
        (IMAGES_ROOT, shown(&old.images_root), shown(&new.images_root)),
        (QUARANTINE, shown(&old.quarantine), shown(&new.quarantine)),
        (BAD_SAMPLES, policy(old.bad_samples), policy(new.bad_samples)),
        (EPOCHS, before.epochs.to_string(), after.epochs.to_string()),
    ];
    Ok(all.into_iter().filter(|(_, from, to)| from != to).map(|(key, from, to)| Change { key, from, to }).collect())
}

/// Returns why a run that is resumed with these changes need not end with the bits of one that ran through, one reason
/// each. Where the data is does not matter.
pub fn effects(changes: &[Change], recipe: &Recipe) -> Vec<String> {
    let follows_length = !matches!(recipe.schedule.decay, Decay::Constant | Decay::Steps);
    let effect = |Change { key, from, to }: &Change| match *key {
        EPOCHS if follows_length => {
            Some(format!("from here on the learning rates are those of a schedule of {to} epochs, not {from}"))
        }
        BAD_SAMPLES => Some(format!("{BAD_SAMPLES} is {to}, not {from}")),
        QUARANTINE => Some(format!("{QUARANTINE} is {to}, not {from}: an epoch has other images")),
        _ => None,
    };
    changes.iter().filter_map(effect).collect()
}

/// The lines that two texts do not share, `-` before the old ones and `+` before the new ones.
fn line_difference(old: &str, new: &str) -> String {
    let has = |text: &str, line: &str| text.lines().any(|other| other == line);
    let gone = old.lines().filter(|line| !has(new, line)).map(|line| format!("- {line}"));
    let come = new.lines().filter(|line| !has(old, line)).map(|line| format!("+ {line}"));
    gone.chain(come).collect::<Vec<_>>().join("\n")
}

/// Returns the absolute paths of the files and folders that a recipe names, by key. Names of published weights, URLs and
/// the embedded digits are no paths.
pub fn paths(recipe: &Recipe) -> BTreeMap<String, String> {
    let data = &recipe.data;
    let named = [
        (TRAIN, Some(&data.train)),
        (VALID, data.valid.as_ref()),
        (IMAGES_ROOT, data.images_root.as_ref()),
        (QUARANTINE, data.quarantine.as_ref()),
        (WEIGHTS, recipe.transfer.as_ref().map(|transfer| &transfer.weights)),
    ];
    let absolute = |(key, spec): (&str, Option<&String>)| {
        let spec = spec.filter(|spec| exists(spec))?;
        Some((key.to_string(), std::path::absolute(spec).ok()?.to_string_lossy().into_owned()))
    };
    named.into_iter().filter_map(absolute).collect()
}

/// Whether a file, a folder or the folder of a pattern is there.
pub fn exists(spec: &str) -> bool {
    if spec.contains("://") {
        return false;
    }
    let path = Path::new(spec);
    match spec.find(['*', '?', '[', '{']).filter(|_| !path.exists()) {
        Some(pattern) => match spec[..pattern].rfind(['/', '\\']) {
            Some(end) => Path::new(&spec[..=end]).is_dir(),
            None => true,
        },
        None => path.exists(),
    }
}

/// Returns a recipe with its files where they are: at the absolute paths that the run noted when it began, or else as
/// they are written. Keys in `changes` were given anew.
pub fn located(recipe: &Recipe, paths: &BTreeMap<String, String>, changes: &[Change]) -> Recipe {
    let mut recipe = recipe.clone();
    let data = &mut recipe.data;
    let specs = [
        (TRAIN, Some(&mut data.train)),
        (VALID, data.valid.as_mut()),
        (IMAGES_ROOT, data.images_root.as_mut()),
        (QUARANTINE, data.quarantine.as_mut()),
        (WEIGHTS, recipe.transfer.as_mut().map(|transfer| &mut transfer.weights)),
    ];
    for (key, spec) in specs {
        let (Some(spec), Some(noted)) = (spec, paths.get(key)) else { continue };
        let is_new = changes.iter().any(|change| change.key == key);
        if !is_new && (exists(noted) || !exists(spec)) {
            spec.clone_from(noted);
        }
    }
    recipe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Overrides, load};

    fn digits() -> Recipe {
        load("digits", &Overrides::default()).unwrap()
    }

    #[test]
    fn where_data_is_and_how_long_a_run_lasts_may_change_and_nothing_else() {
        let before = digits();
        assert_eq!(between(&before, &before), Ok(Vec::new()));
        let mut after = before.clone();
        after.data.train = "moved".into();
        assert!(effects(&between(&before, &after).unwrap(), &after).is_empty(), "a place changes no bit");
        after.data.images_root = Some("elsewhere".into());
        let changed = between(&before, &after).unwrap();
        assert!(effects(&changed, &after).is_empty() && changed[1].key == IMAGES_ROOT, "nor does another");
        after.data.images_root = None;
        after.data.bad_samples = BadSamples::Skip;
        after.data.quarantine = Some("bad.txt".into());
        after.epochs += 1;
        let changes = between(&before, &after).unwrap();
        let keys: Vec<&str> = changes.iter().map(|change| change.key).collect();
        assert_eq!(keys, [TRAIN, QUARANTINE, BAD_SAMPLES, EPOCHS]);
        assert_eq!((changes[1].from.as_str(), changes[2].to.as_str()), ("none", "skip"));
        assert_eq!(effects(&changes, &after).len(), 3);
        after.schedule.decay = Decay::Constant;
        assert_eq!(effects(&changes, &after).len(), 2, "rates that do not know the end");
        after = Recipe { seed: 7, ..before.clone() };
        assert_eq!(between(&before, &after), Err(format!("- seed = {}\n+ seed = 7", before.seed)));
    }

    #[test]
    fn files_are_found_from_another_folder_and_after_they_were_moved() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).to_string_lossy().into_owned();
        std::fs::create_dir(at("shards")).unwrap();
        let mut recipe = digits();
        assert!(paths(&recipe).is_empty(), "the embedded digits are no path");
        recipe.data.train = at("shards/train-{0..3}.tar");
        recipe.data.valid = Some("s3://bucket/val.tar".into());
        let noted = paths(&recipe);
        assert_eq!(noted.into_iter().collect::<Vec<_>>(), [(TRAIN.to_string(), recipe.data.train.clone())]);

        recipe.data.train = "typed".into();
        let noted = |path: &str| BTreeMap::from([(TRAIN.to_string(), at(path))]);
        assert_eq!(located(&recipe, &noted("shards"), &[]).data.train, at("shards"));
        assert_eq!(located(&recipe, &noted("gone"), &[]).data.train, at("gone"), "the message names the place");
        recipe.data.train = at("shards");
        assert_eq!(located(&recipe, &noted("gone"), &[]).data.train, at("shards"));
        let change = Change { key: TRAIN, from: "typed".into(), to: "new".into() };
        recipe.data.train = "new".into();
        assert_eq!(located(&recipe, &noted("shards"), &[change]).data.train, "new");
    }
}
