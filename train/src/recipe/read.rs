//! From a name or a file, and flags, to a checked recipe.

use std::{fs, io, path::Path};

use runtime::text::nearest;
use toml::{Table, Value};

use super::{Error, Recipe, SHIPPED};

/// What flags change in a recipe: values by dotted key, `schedule.learning_rate`; `None` removes the key.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<(String, Option<Value>)>);

impl Overrides {
    /// Sets the key, where there is a value.
    pub fn set(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.push((key.to_string(), Some(value.into())));
        }
    }

    /// Removes the key, so that it has its default.
    pub fn remove(&mut self, key: &str) {
        self.0.push((key.to_string(), None));
    }

    /// Drops what was set or removed of a key and of the keys below it.
    pub fn forget(&mut self, key: &str) {
        let is_below = |own: &str| own.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.0.retain(|(own, _)| !is_below(own));
    }

    /// Adds others, which count more.
    pub fn extend(&mut self, more: Overrides) {
        self.0.extend(more.0);
    }

    /// Adds a `KEY=VALUE` whose value is TOML, or else a string.
    ///
    /// # Errors
    /// Fails if there is no `=`.
    pub fn parse(&mut self, text: &str) -> Result<(), Error> {
        let no_value = || Error::Syntax(format!("cannot set `{text}`: write KEY=VALUE"));
        let (key, value) = text.split_once('=').ok_or_else(no_value)?;
        let (key, value) = (key.trim(), value.trim());
        let parsed = toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
        self.0.push((key.to_string(), Some(parsed.unwrap_or_else(|| Value::String(value.to_string())))));
        Ok(())
    }

    /// Returns whether a key, a table that it is in, or a key below it is set or removed.
    pub fn names(&self, key: &str) -> bool {
        let is_in = |key: &str, table: &str| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
        self.0.iter().any(|(own, _)| own == key || is_in(key, own) || is_in(own, key))
    }

    fn apply(&self, recipe: &mut Table) -> Result<(), Error> {
        for (key, value) in &self.0 {
            let mut parts: Vec<&str> = key.split('.').collect();
            let last = parts.pop().unwrap_or_default();
            let mut table = &mut *recipe;
            for part in parts {
                let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
                let no_table = || Error::Syntax(format!("`{part}` in `{key}` is no table"));
                table = entry.as_table_mut().ok_or_else(no_table)?;
            }
            match value {
                Some(value) => table.insert(last.to_string(), value.clone()),
                None => table.remove(last),
            };
        }
        Ok(())
    }
}

/// Reads a shipped recipe or a file and applies the overrides. The values are not checked yet: data and weights may still
/// change them.
///
/// # Errors
/// Fails if there is no such recipe or file, or if it is not a recipe.
pub fn load(name: &str, overrides: &Overrides) -> Result<Recipe, Error> {
    let (text, shown) = text(name)?;
    parse(&text, &shown, overrides)
}

/// The text of a recipe, and how messages call it.
fn text(name: &str) -> Result<(String, String), Error> {
    if let Some(shipped) = SHIPPED.iter().find(|shipped| shipped.name == name) {
        return Ok((shipped.text.to_string(), format!("the recipe {name}")));
    }
    let path = Path::new(name);
    if !path.exists() && !name.ends_with(".toml") && !name.contains(['/', '\\']) {
        let names = SHIPPED.iter().map(|shipped| shipped.name);
        let hint = nearest(name, names).map_or(String::new(), |nearest| format!(" did you mean {nearest}?"));
        return Err(Error::Unknown(format!(
            "there is no recipe {name} and no such file;{hint} `train recipes` lists those there are"
        )));
    }
    let failed = |error: io::Error| Error::Read { name: name.into(), cause: error.to_string() };
    let text = fs::read_to_string(path).map_err(failed)?;
    Ok((text, format!("the recipe {name}")))
}

/// Parses a recipe in TOML and applies the overrides; messages call it `shown`.
///
/// # Errors
/// Fails if the text is not a recipe.
pub fn parse(text: &str, shown: &str, overrides: &Overrides) -> Result<Recipe, Error> {
    let invalid = |error: toml::de::Error| {
        let suggestion = suggestion(error.message()).map_or(String::new(), |s| format!("; did you mean `{s}`?"));
        Error::Syntax(format!("{shown} is not valid: {}{suggestion}", in_words(error.to_string().trim_end())))
    };
    if overrides.0.is_empty() {
        // Straight from the text: errors then show the line.
        return toml::from_str(text).map_err(invalid);
    }
    // First without, so that a mistake in the file is shown where it stands.
    toml::from_str::<Recipe>(text).map_err(invalid)?;
    let mut table: Table = toml::from_str(text).map_err(invalid)?;
    overrides.apply(&mut table)?;
    serde_path_to_error::deserialize(Value::Table(table)).map_err(
        |error: serde_path_to_error::Error<toml::de::Error>| {
            let key = error.path().to_string();
            let message = error.inner().message();
            let suggestion = suggestion(message).map_or(String::new(), |s| format!("; did you mean `{s}`?"));
            let message = in_words(message);
            Error::Syntax(format!("{shown} with the command line's changes is not valid: {key}: {message}{suggestion}"))
        },
    )
}

/// Replaces serde's names of types by words.
fn in_words(message: &str) -> String {
    let types = [
        ("usize", "a whole number"),
        ("u64", "a whole number"),
        ("u32", "a whole number"),
        ("f64", "a number"),
        ("f32", "a number"),
    ];
    types.iter().fold(message.to_string(), |text, (name, words)| {
        text.replace(&format!("expected {name}"), &format!("expected {words}"))
    })
}

/// For serde's "unknown field `a`, expected one of `b`, `c`": the nearest of what was expected.
fn suggestion(message: &str) -> Option<&str> {
    let unknown = ["unknown field `", "unknown variant `", "unknown architecture `"];
    let (_, rest) = unknown.iter().find_map(|start| message.split_once(start))?;
    let (unknown, rest) = rest.split_once('`')?;
    let expected = rest.split('`').skip(1).step_by(2);
    nearest(unknown, expected)
}

/// A shipped recipe as it is.
#[cfg(test)]
pub fn shipped(name: &str) -> Result<Recipe, Error> {
    load(name, &Overrides::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text, "the recipe r.toml", &Overrides::default()).unwrap_err().to_string()
    }

    fn digits() -> &'static str {
        SHIPPED.iter().find(|shipped| shipped.name == "digits").unwrap().text
    }

    #[test]
    fn an_unknown_key_is_an_error_that_shows_the_line_and_suggests_another() {
        let error = error(&digits().replace("momentum =", "momentun ="));
        assert!(error.contains("momentun = 0.9") && error.contains("did you mean `momentum`?"), "{error}");
    }

    #[test]
    fn an_unknown_choice_suggests_another() {
        let error = error(&digits().replace("\"cosine\"", "\"cosin\""));
        assert!(error.contains("did you mean `cosine`?"), "{error}");
    }

    #[test]
    fn flags_change_and_add_keys() {
        let mut overrides = Overrides::default();
        overrides.set("epochs", Some(3));
        overrides.set("batch_size", None::<i64>);
        overrides.parse("ema.decay=0.9").unwrap();
        overrides.parse("transfer.weights=resnet50").unwrap();
        overrides.parse("optimizer.nesterov = true").unwrap();
        let recipe = load("digits", &overrides).unwrap();
        assert_eq!((recipe.epochs, recipe.batch_size), (3, 32));
        assert_eq!(recipe.ema.unwrap().decay, 0.9);
        assert_eq!(recipe.transfer.unwrap().weights, "resnet50");
        assert_eq!(recipe.optimizer.nesterov, Some(true));

        let mut changed = Overrides::default();
        changed.remove("transfer.unfreeze_at");
        changed.set("transfer.freeze", Some("none"));
        changed.remove("ema.decay.no");
        assert!(load("finetune", &changed).is_err(), "a key below a number");
        changed.0.pop();
        assert_eq!(load("finetune", &changed).unwrap().transfer.unwrap().unfreeze_at, None);

        let names = ["ema", "ema.decay", "ema.every", "optimizer.nesterov", "seed"].map(|key| overrides.names(key));
        assert_eq!(names, [true, true, false, true, false]);
        let mut fewer = overrides.clone();
        fewer.forget("ema");
        assert!(!fewer.names("ema.decay") && fewer.names("transfer.weights"));
        assert!(overrides.parse("epochs").is_err());
        overrides.parse("optimizer.momentun=0.9").unwrap();
        let error = load("digits", &overrides).unwrap_err().to_string();
        assert!(error.contains("momentun") && error.contains("did you mean `momentum`?"), "{error}");
    }

    #[test]
    fn a_recipe_that_is_not_there_is_told_apart_from_a_file() {
        let error = |name: &str| load(name, &Overrides::default()).unwrap_err().to_string();
        assert!(error("imagenet-clasic").contains("did you mean imagenet-classic?"), "{}", error("imagenet-clasic"));
        assert!(error("mine.toml").contains("cannot read the recipe mine.toml: No such file"));
    }

    #[test]
    fn every_shipped_recipe_is_valid_and_survives_being_written() {
        for shipped in SHIPPED {
            let recipe = load(shipped.name, &Overrides::default()).unwrap();
            recipe.check().unwrap_or_else(|error| panic!("{}: {error}", shipped.name));
            assert_eq!(parse(&recipe.to_toml(), "r", &Overrides::default()).unwrap(), recipe, "{}", shipped.name);
            assert!(shipped.text.starts_with("# Reproduces:"), "{} does not say what it reproduces", shipped.name);
        }
    }
}
