//! Names from files cannot change the structure of a page.
//!
//! Each file of a run is written twice: with hostile text in every field, and with harmless text of the same length and
//! estimated width. The pages must have the same elements and attributes, and contain every hostile text after
//! unescaping. An interpolation without escaping fails one of the two.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    fs,
    path::{Path, PathBuf},
};

use quick_xml::{Reader, XmlVersion, events::Event};
use report::chart::{Chart, Series};

const HOSTILE: &str = "<script>alert(1)</script>\"'&";

/// Returns the text in as many harmless characters, for which layouts reserve as much space.
fn harmless(text: &str) -> String {
    text.replace('\'', "i").replace(|character: char| !character.is_alphanumeric(), "n")
}

/// The elements with the names of their attributes, and the unescaped text and values of attributes.
#[derive(Default)]
struct Structure {
    elements: Vec<String>,
    texts: String,
}

/// Returns the structure of a document. Panics if quotes or ampersands are not escaped.
fn structure(document: &str) -> Structure {
    // Style and script are no markup.
    let document = document.replacen(include_str!("../src/page.css"), "", 1);
    let document = document.replacen(include_str!("../src/page.js"), "", 1);
    // `'` is left as it is, so it must not enclose a value.
    assert!(!document.contains("='"));
    let mut reader = Reader::from_str(&document);
    // HTML has elements without an end.
    reader.config_mut().check_end_names = false;
    reader.config_mut().allow_unmatched_ends = true;
    let mut structure = Structure::default();
    loop {
        match reader.read_event().unwrap() {
            Event::Start(element) | Event::Empty(element) => {
                let mut description = String::from_utf8(element.name().as_ref().to_vec()).unwrap();
                for attribute in element.attributes() {
                    let attribute = attribute.unwrap();
                    description += &format!(" {}", String::from_utf8_lossy(attribute.key.as_ref()));
                    structure.texts += &attribute.normalized_value(XmlVersion::Implicit1_0).unwrap();
                    structure.texts.push('\n');
                }
                structure.elements.push(description);
            }
            Event::End(element) => {
                structure.elements.push(format!("/{}", String::from_utf8_lossy(element.name().as_ref())));
                structure.texts.push('\n');
            }
            Event::Text(text) => structure.texts += &text.decode().unwrap(),
            Event::GeneralRef(reference) => {
                let name = reference.decode().unwrap();
                structure.texts.push(match &*name {
                    "lt" => '<',
                    "gt" => '>',
                    "amp" => '&',
                    "quot" => '"',
                    _ => panic!("unexpected reference &{name};"),
                });
            }
            Event::DocType(_) => {}
            Event::Eof => return structure,
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// Checks that two documents, with hostile and with harmless texts, have the same structure, and that all the texts
/// `FIELD` + [`HOSTILE`] are in the first.
fn assert_escaped(hostile: &str, harmless: &str, fields: &[&str]) {
    let (hostile, harmless) = (structure(hostile), structure(harmless));
    for (index, (a, b)) in hostile.elements.iter().zip(&harmless.elements).enumerate() {
        assert_eq!(a, b, "element {index} after {:?}", &hostile.elements[index.saturating_sub(3)..index]);
    }
    assert_eq!(hostile.elements.len(), harmless.elements.len());
    for field in fields {
        assert!(hostile.texts.contains(&format!("{field}{HOSTILE}")), "the document does not contain {field}");
    }
}

/// The fields of [`write_run`] whose text is on the report of a run as it is.
const FIELDS: [&str; 25] = [
    "name",
    "hearth",
    "commit",
    "burn",
    "backend",
    "device",
    "os",
    "cpu",
    "dtype",
    "started",
    "finished",
    "train",
    "valid",
    "kind",
    "fingerprint",
    "comment",
    "architecture",
    "class0",
    "class3",
    "note",
    "card key",
    "advice",
    "mistake",
    "image0",
    "image4",
];

/// Writes a run whose texts are a field's name and what `payload` returns.
fn write_run(folder: &Path, run: &str, payload: &dyn Fn(&str) -> String) {
    let text = |field: &str| format!("{field}{}", payload(HOSTILE));
    let json = |field: &str| serde_json::to_string(&text(field)).unwrap();
    let csv = |field: &str| format!("\"{}\"", text(field).replace('"', "\"\""));
    let write = |file: &str, text: String| fs::write(folder.join(file), text).unwrap();
    fs::create_dir_all(folder.join("mistakes")).unwrap();
    let classes: Vec<String> = (0..6).map(|class| json(&format!("class{class}"))).collect();
    write(
        "card.json",
        format!(
            r#"{{"architecture": {}, "classes": [{}], "note": {}, {}: 1}}"#,
            json("architecture"),
            classes.join(", "),
            json("note"),
            json("card key")
        ),
    );
    write(
        "recipe.toml",
        // JSON's strings are TOML's.
        format!("# {}\n{} = 1\nnote = {}\n", text("comment"), json("recipe_key"), json(&format!("{run}recipe_value"))),
    );
    let info = ["hearth", "commit", "burn", "backend", "device", "os", "cpu", "dtype", "started", "finished"];
    let info: Vec<String> = info.iter().map(|field| format!("\"{field}\": {}", json(field))).collect();
    let data = ["train", "valid", "kind", "fingerprint"];
    let data: Vec<String> = data.iter().map(|field| format!("\"{field}\": {}", json(field))).collect();
    write(
        "run.json",
        format!(
            r#"{{"name": {}, "command": [{}], "data": {{{}}}, {}}}"#,
            json(&format!("{run}name")),
            json("command").replace('\'', ""),
            data.join(", "),
            info.join(", ")
        ),
    );
    write("epochs.csv", format!("epoch,seconds,compute,advice\n1,2,1,{}\n", csv("advice")));
    write("metrics.csv", "epoch,step,split,loss,top1\n1,1,valid,2,50\n2,2,valid,1,60\n".to_string());
    let mut predictions = "key,label,loss,pred1,p1\n".to_string();
    for image in 0..6 {
        let key = csv(&format!("image{image}"));
        predictions += &format!("{key},{image},{}.5,{},0.5\n", image + 1, 3 * usize::from(image != 5));
    }
    write("predictions.csv", predictions);
    write(
        "mistakes/index.csv",
        format!("file,key,label,pred1,p1\nx,{},1,3,0.9\ny,{},0,3,0.5\n", csv("mistake"), csv("image0")),
    );
}

/// Writes a run with files that cannot be read, whose texts are in the error messages.
fn write_damaged(folder: &Path, payload: &dyn Fn(&str) -> String) {
    let json = |field: &str| serde_json::to_string(&format!("{field}{}", payload(HOSTILE))).unwrap();
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("card.json"), format!("{{\"classes\": {}}}", json("card_error"))).unwrap();
    fs::write(folder.join("run.json"), format!("{{\"status\": {}}}", json("run_error"))).unwrap();
    fs::write(folder.join("recipe.toml"), "x = ").unwrap();
}

/// Writes the same runs twice, with hostile and with harmless texts, and returns what `document` makes of each.
fn documents(
    write: impl Fn(&Path, &dyn Fn(&str) -> String) -> Vec<PathBuf>,
    document: impl Fn(&[PathBuf], &Path) -> String,
) -> [String; 2] {
    [&str::to_string as &dyn Fn(&str) -> String, &harmless].map(|payload| {
        let folder = tempfile::tempdir().unwrap();
        document(&write(folder.path(), payload), folder.path())
    })
}

fn report_of(runs: &[PathBuf], _: &Path) -> String {
    fs::read_to_string(report::write(&runs[0]).unwrap()).unwrap()
}

/// The name of a folder cannot contain a slash.
fn folder_name(payload: &dyn Fn(&str) -> String) -> String {
    format!("folder{}", payload(&HOSTILE.replace('/', "")))
}

#[test]
fn a_report_escapes_every_text_of_a_run() {
    let write = |folder: &Path, payload: &dyn Fn(&str) -> String| {
        write_run(folder, "", payload);
        vec![folder.to_path_buf()]
    };
    let [hostile, harmless] = documents(write, report_of);
    assert_escaped(&hostile, &harmless, &FIELDS);
    // In TOML, quotes are escaped too; the command line is without `'`, which would be quoted for a shell.
    let quoted = HOSTILE.replace('"', "\\\"");
    let texts = structure(&hostile).texts;
    for text in [format!("recipe_key{quoted}"), format!("recipe_value{quoted}"), HOSTILE.replace('\'', "") + "'"] {
        assert!(texts.contains(&text), "the report does not contain {text}");
    }
}

#[test]
fn a_report_escapes_error_messages_and_the_folder() {
    let write = |folder: &Path, payload: &dyn Fn(&str) -> String| {
        let run = folder.join(folder_name(payload));
        write_damaged(&run, payload);
        vec![run]
    };
    let [hostile, harmless] = documents(write, report_of);
    // The error message quotes its text once more.
    let quoted = HOSTILE.replace('"', "\\\"");
    let texts = structure(&hostile).texts;
    assert!(
        texts.contains(&format!("card_error{quoted}")) && texts.contains(&format!("run_error{HOSTILE}")),
        "{texts}"
    );
    assert!(texts.contains(&folder_name(&str::to_string)));
    assert_escaped(&hostile, &harmless, &[]);
}

#[test]
fn a_comparison_escapes_every_text_of_its_runs() {
    let write = |folder: &Path, payload: &dyn Fn(&str) -> String| {
        let runs = ["a", "b"].map(|run| {
            write_run(&folder.join(run), run, payload);
            folder.join(run)
        });
        let damaged = folder.join(folder_name(payload));
        write_damaged(&damaged, payload);
        [&runs[..], &[damaged]].concat()
    };
    let compare = |runs: &[PathBuf], folder: &Path| {
        let out = folder.join("compare.html");
        report::compare(runs, &out).unwrap();
        fs::read_to_string(out).unwrap()
    };
    let [hostile, harmless] = documents(write, compare);
    let fields = ["aname", "bname", "architecture", "recipe_key", "arecipe_value", "brecipe_value", "run_error", "cpu"];
    assert_escaped(&hostile, &harmless, &fields);
    let folder = folder_name(&str::to_string);
    let texts = structure(&hostile).texts;
    for text in [format!("{folder}/card.json"), format!("recipe.toml of {folder} is not TOML")] {
        assert!(texts.contains(&text), "the page does not contain {text}");
    }
}

#[test]
fn a_chart_escapes_its_texts() {
    // Short names are at the ends of the lines, long ones in a legend.
    for payload in [HOSTILE, "<b>\"&"] {
        let chart = |payload: &str| {
            let text = |field: &str| format!("{field}{payload}");
            let series = ["first", "second"].map(|name| Series::new(text(name), vec![(0.0, 1.0), (1.0, 2.0)]));
            let chart = Chart {
                title: text("title"),
                x_label: text("x"),
                y_label: text("y"),
                series: series.to_vec(),
                marker: Some((0.5, text("marker"))),
                ..Chart::default()
            };
            chart.to_svg()
        };
        let (hostile, harmless) = (chart(payload), chart(&harmless(payload)));
        assert_escaped(&hostile, &harmless, &[]);
        for field in ["first", "second", "title", "x", "y", "marker"] {
            assert!(structure(&hostile).texts.contains(&format!("{field}{payload}")), "{hostile}");
        }
    }
}
