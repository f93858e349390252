//! Tests that `docs/guide/reference/recipe.md` documents the recipe's types: every key, its type and its default.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::Recipe;

const PAGE: &str = include_str!("../../../docs/guide/reference/recipe.md");

/// A recipe with every table, from which keys are removed and into which keys are put.
const BASE: &str = r#"
architecture = "resnet20"
epochs = 2
batch_size = 4
seed = 0
[data]
[images]
train = [{ name = "CenterCrop", size = 8 }]
mix = []
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
sizes = [{ epoch = 1, size = 32 }]
[images.eval]
resize = 32
crop = 32
[network]
[loss]
[optimizer]
name = "sgd"
[schedule]
learning_rate = 0.1
decay = "constant"
[ema]
decay = 0.9
[transfer]
weights = "resnet20"
[checkpoints]
[ranks]
"#;

/// A row of the page.
#[derive(Debug)]
struct Key {
    kind: &'static str,
    default: &'static str,
}

/// The tables of the page by the headings above them, without backticks.
fn documented() -> BTreeMap<&'static str, BTreeMap<&'static str, Key>> {
    let mut sections: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    let mut heading = "";
    for line in PAGE.lines() {
        if let Some(text) = line.strip_prefix("## ").or_else(|| line.strip_prefix("### ")) {
            heading = text.trim_matches('`');
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<&str> = row.splitn(4, " | ").collect();
            let [key, kind, default, _meaning] = cells[..] else { panic!("a row of {heading} has other cells: {row}") };
            let key = key.trim_matches('`');
            let earlier = sections.entry(heading).or_default().insert(key, Key { kind, default });
            assert!(earlier.is_none(), "{heading}: {key} is documented twice");
        }
    }
    sections
}

/// The table at a path of keys, where a number is an index of an array.
fn at<'a>(table: &'a mut Table, path: &[&str]) -> &'a mut Table {
    let Some((first, mut rest)) = path.split_first() else { return table };
    let mut value = table.get_mut(*first).unwrap_or_else(|| panic!("the base recipe has no {first}"));
    if let (true, Some((index, more))) = (value.is_array(), rest.split_first()) {
        value = value.get_mut(index.parse::<usize>().expect("an index")).expect("an element");
        rest = more;
    }
    at(value.as_table_mut().expect("a table"), rest)
}

/// The base recipe with a change in the table at `path`.
fn changed(base: &Table, path: &[&str], change: impl FnOnce(&mut Table)) -> Result<Recipe, String> {
    let mut recipe = base.clone();
    change(at(&mut recipe, path));
    recipe.try_into().map_err(|error: toml::de::Error| error.message().to_string())
}

/// The names between backticks after "expected".
fn expected(message: &str) -> BTreeSet<String> {
    let list = message.split_once("expected").unwrap_or_else(|| panic!("no list in: {message}")).1;
    list.split('`').skip(1).step_by(2).map(str::to_string).collect()
}

/// The keys that serde accepts in the table at `path`.
fn accepted(base: &Table, path: &[&str]) -> BTreeSet<String> {
    let error = changed(base, path, |table| {
        table.insert("?".into(), Value::Integer(0));
    })
    .unwrap_err();
    assert!(error.contains("unknown field `?`"), "{path:?}: {error}");
    expected(&error)
}

/// The type of a key as the page writes it, from what serde says of a string there.
fn kind(base: &Table, path: &[&str], key: &str) -> String {
    let error = match changed(base, path, |table| {
        table.insert(key.into(), Value::String("?".into()));
    }) {
        Ok(_) => return "string".into(),
        Err(error) => error,
    };
    if error.contains("unknown variant `?`") {
        return expected(&error).into_iter().collect::<Vec<_>>().join(" ");
    }
    let Some((_, wanted)) = error.split_once("invalid type: string \"?\", expected ") else {
        // A type that parses its own strings: an architecture, stages to freeze.
        assert!(error.contains('?'), "{path:?} {key}: {error}");
        return "string".into();
    };
    match wanted.trim() {
        "usize" | "u64" | "u32" | "u8" | "i32" | "i64" => "integer".into(),
        "f32" | "f64" => "float".into(),
        "a boolean" => "boolean".into(),
        "a sequence" => "array".into(),
        array if array.starts_with("an array of length ") => format!("array of {}", &array[19..]),
        table if table.starts_with("struct ") => "table".into(),
        other => panic!("{path:?} {key}: {other}"),
    }
}

/// Checks one table of the page against the types at `path` in `base`.
fn check(heading: &str, keys: &BTreeMap<&str, Key>, base: &Table, path: &[&str]) {
    let known = accepted(base, path);
    let listed: BTreeSet<String> = keys.keys().map(|key| key.to_string()).collect();
    let missing: Vec<_> = known.difference(&listed).collect();
    let superfluous: Vec<_> = listed.difference(&known).collect();
    assert!(missing.is_empty(), "{heading}: the page lacks {missing:?}");
    assert!(superfluous.is_empty(), "{heading}: the recipe has no {superfluous:?}");
    for (key, Key { kind: shown, default }) in keys {
        let documented = match shown.strip_prefix("one of ") {
            Some(choices) => {
                let choices: BTreeSet<&str> =
                    choices.split('`').skip(1).step_by(2).map(|c| c.trim_matches('"')).collect();
                choices.into_iter().collect::<Vec<_>>().join(" ")
            }
            None => shown.to_string(),
        };
        assert_eq!(documented, kind(base, path, key), "{heading}: the type of {key}");
        let without = changed(base, path, |table| {
            table.remove(*key);
        });
        match *default {
            "required" => {
                let error = without.expect_err(&format!("{heading}: {key} is not required"));
                assert!(error.contains(&format!("missing field `{key}`")), "{heading}: {key}: {error}");
            }
            "unset" => {
                let mut recipe = Table::try_from(without.unwrap()).unwrap();
                assert!(!at(&mut recipe, path).contains_key(*key), "{heading}: {key} has a default");
            }
            literal => {
                let text = format!("value = {}", literal.trim_matches('`'));
                let value = toml::from_str::<Table>(&text).unwrap().remove("value").unwrap();
                let given = changed(base, path, |table| {
                    table.insert(key.to_string(), value);
                });
                assert_eq!(given.unwrap(), without.unwrap(), "{heading}: the default of {key}");
            }
        }
    }
}

#[test]
fn every_table_of_a_recipe_is_documented() {
    let (mut sections, base) = (documented(), toml::from_str::<Table>(BASE).unwrap());
    let top = sections.remove("Top level").expect("a section for the top level");
    check("Top level", &top, &base, &[]);
    let mut tables: Vec<(String, Vec<&str>)> = vec![
        ("[images.eval]".to_string(), vec!["images", "eval"]),
        ("[[images.sizes]]".to_string(), vec!["images", "sizes", "0"]),
    ];
    let named = top.iter().filter(|(_, key)| key.kind == "table");
    tables.extend(named.map(|(&key, _)| (format!("[{key}]"), vec![key])));
    for (heading, path) in tables {
        let keys = sections.remove(heading.as_str()).unwrap_or_else(|| panic!("the page has no section {heading}"));
        check(&heading, &keys, &base, &path);
    }
}

#[test]
fn every_transform_is_documented() {
    let (sections, base) = (documented(), toml::from_str::<Table>(BASE).unwrap());
    for (array, page_section) in [("train", "\n## Transforms\n"), ("mix", "\n## Batch transforms\n")] {
        let section = PAGE.split_once(page_section).unwrap_or_else(|| panic!("no section {page_section}")).1;
        let section = section.split("\n## ").next().unwrap_or_default();
        let headings: BTreeSet<String> =
            section.lines().filter_map(|line| Some(line.strip_prefix("### ")?.trim_matches('`').to_string())).collect();
        let entry = |name: &str| {
            let mut transform = Table::new();
            transform.insert("name".into(), Value::String(name.into()));
            transform
        };
        let with = |transform: Table| {
            let mut recipe = base.clone();
            at(&mut recipe, &["images"]).insert(array.into(), Value::Array(vec![Value::Table(transform)]));
            recipe
        };
        let unknown = with(entry("?")).try_into::<Recipe>().unwrap_err();
        assert_eq!(headings, expected(unknown.message()), "the transforms of images.{array}");
        for name in &headings {
            let keys = &sections[name.as_str()];
            let mut transform = entry(name);
            // All that are required are sizes in pixels.
            for (key, _) in keys.iter().filter(|(_, key)| key.default == "required") {
                transform.insert(key.to_string(), Value::Integer(8));
            }
            check(name, keys, &with(transform), &["images", array, "0"]);
        }
    }
}
