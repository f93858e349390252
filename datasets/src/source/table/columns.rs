//! Which columns of a table have the images, the labels and the splits.

use runtime::text::{nearest, printable};

use crate::source::{is_image_name, options::TableOptions};

/// Names of columns of images, the most telling first, without spaces, signs and capitals.
const IMAGE: [&str; 29] = [
    "imagepath",
    "imgpath",
    "filepath",
    "relativepath",
    "path",
    "imagefile",
    "imgfile",
    "imagefilename",
    "filename",
    "fname",
    "file",
    "files",
    "imagename",
    "imgname",
    "image",
    "images",
    "img",
    "imgs",
    "picture",
    "photo",
    "photopath",
    "imageid",
    "imgid",
    "imageids",
    "photoid",
    "fileid",
    "name",
    "id",
    "uuid",
];

/// Names of columns of labels.
const LABEL: [&str; 26] = [
    "label",
    "labels",
    "class",
    "classes",
    "classname",
    "classlabel",
    "category",
    "categoryname",
    "categories",
    "target",
    "targets",
    "finelabel",
    "labelname",
    "species",
    "breed",
    "diagnosis",
    "dx",
    "emotion",
    "tag",
    "tags",
    "groundtruth",
    "y",
    "labelid",
    "classid",
    "categoryid",
    "targetid",
];

/// Names of columns of splits.
const SPLIT: [&str; 14] = [
    "split",
    "splits",
    "set",
    "subset",
    "partition",
    "datasplit",
    "phase",
    "usage",
    "isvalid",
    "isval",
    "isvalidation",
    "istrain",
    "istraining",
    "istrainingimage",
];

/// Names of columns of row numbers, as pandas and R write them.
const NUMBERS: [&str; 4] = ["", "unnamed0", "index", "rownames"];

/// The most names that a message lists.
const LISTED: usize = 20;

/// The columns of a table that matter, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    pub image: usize,
    pub label: Option<usize>,
    pub split: Option<usize>,
    /// Whether the column of splits was guessed from its name.
    pub split_is_guessed: bool,
    /// What was guessed: `images from the column `path`, labels from `breed``; empty if all columns were given.
    pub guess: String,
}

/// A name in lower case, without spaces and signs.
fn folded(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Whether all of some cells are names of images.
fn has_images(rows: &[Vec<String>], column: usize) -> bool {
    let mut cells = rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
    cells.peek().is_some() && cells.all(|cell| is_image_name(cell))
}

/// Chooses the columns by the options, else by their names, else by the first rows.
///
/// # Errors
/// Returns the cause and the remedy: a column that is not there, or none that can be guessed.
pub fn choose(names: &[String], rows: &[Vec<String>], options: &TableOptions) -> Result<Columns, String> {
    let listed = || {
        let shown: Vec<_> = names.iter().take(LISTED).map(|name| format!("`{}`", printable(name))).collect();
        match names.len().saturating_sub(LISTED) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    };
    let given = |name: &Option<String>| -> Result<Option<usize>, String> {
        let Some(name) = name else { return Ok(None) };
        let exact: Vec<usize> = (0..names.len()).filter(|&at| names[at] == *name).collect();
        let like: Vec<usize> = (0..names.len()).filter(|&at| folded(&names[at]) == folded(name)).collect();
        match (&exact[..], &like[..]) {
            ([one], _) | ([], [one]) => Ok(Some(*one)),
            ([], []) => {
                let meant = nearest(name, names.iter().map(String::as_str));
                let meant = meant.map_or(String::new(), |name| format!("; did you mean `{}`?", printable(name)));
                Err(format!("has no column `{}`: its columns are {}{meant}", printable(name), listed()))
            }
            _ => Err(format!("has several columns `{}`: give each its own name", printable(name))),
        }
    };
    let (image, label, split) =
        (given(&options.image_column)?, given(&options.label_column)?, given(&options.split_column)?);
    let mut guesses = Vec::new();
    let mut guessed = |what: &str, column: usize| {
        let of = if guesses.is_empty() { "the column " } else { "" };
        guesses.push(format!("{what} from {of}`{}`", printable(&names[column])));
    };
    let is_taken = |at: usize| [image, label, split].contains(&Some(at));
    let by_name = |known: &[&str], taken: &dyn Fn(usize) -> bool| -> Vec<usize> {
        let at = |known: &&str| (0..names.len()).find(|&at| !taken(at) && folded(&names[at]) == *known);
        known.iter().filter_map(at).collect()
    };

    let chosen_image = image;
    let image = match chosen_image {
        Some(image) => image,
        None => {
            let named = by_name(&IMAGE, &is_taken);
            let by_content: Vec<usize> = (0..names.len()).filter(|&at| !is_taken(at) && has_images(rows, at)).collect();
            let both = named.iter().find(|at| by_content.contains(at));
            let image = match (both, &by_content[..], &named[..]) {
                (Some(&both), ..) => both,
                (None, [one], _) => *one,
                (None, _, [first, ..]) => *first,
                (None, ..) if names.len() == 1 => 0,
                _ => {
                    return Err(format!(
                        "has no column that looks like the images' paths: its columns are {}; name it (image_column). \
                         Columns of a table without a header have numbers: 1, 2, …",
                        listed()
                    ));
                }
            };
            guessed("images", image);
            image
        }
    };
    let chosen_split = split;
    let split = chosen_split.or_else(|| by_name(&SPLIT, &|at| is_taken(at) || at == image).first().copied());
    let label = match label {
        Some(label) => Some(label),
        None if options.label_from.is_some() => None,
        None => {
            let taken = |at: usize| is_taken(at) || at == image || Some(at) == split;
            let rest: Vec<usize> =
                (0..names.len()).filter(|&at| !taken(at) && !NUMBERS.contains(&folded(&names[at]).as_str())).collect();
            let label = match (by_name(&LABEL, &taken).first(), &rest[..]) {
                (Some(&named), _) => Some(named),
                (None, [only]) => Some(*only),
                (None, []) => None,
                _ => {
                    return Err(format!(
                        "has no column that looks like the labels: its columns are {}; name it (label_column)",
                        listed()
                    ));
                }
            };
            if let Some(label) = label {
                guessed("labels", label);
            }
            label
        }
    };
    if let (None, Some(split)) = (chosen_split, split) {
        guessed("splits", split);
    }
    for (a, b) in [(Some(image), label), (Some(image), split), (label, split)] {
        if let (Some(a), Some(b)) = (a, b)
            && a == b
        {
            return Err(format!("cannot have two things in the column `{}`", printable(&names[a])));
        }
    }
    let split_is_guessed = chosen_split.is_none() && split.is_some();
    Ok(Columns { image, label, split, split_is_guessed, guess: guesses.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(header: &str, row: &str) -> (Vec<String>, Vec<Vec<String>>) {
        let cells = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
        (cells(header), vec![cells(row)])
    }

    fn chosen(
        header: &str,
        row: &str,
        options: &TableOptions,
    ) -> Result<(usize, Option<usize>, Option<usize>), String> {
        let (names, rows) = table(header, row);
        choose(&names, &rows, options).map(|columns| (columns.image, columns.label, columns.split))
    }

    #[test]
    fn columns_are_guessed_from_common_names_and_contents() {
        for (header, row, expected) in [
            ("image,label", "a.jpg,cat", (0, Some(1), None)),
            ("Label,Image Path", "cat,a.jpg", (1, Some(0), None)),
            ("id,breed", "000bec,boxer", (0, Some(1), None)),
            ("id,file_name,class,split", "1,a.jpg,cat,train", (1, Some(2), Some(3))),
            (",filename,condition", "0,a.png,wet", (1, Some(2), None)),
            ("photo_of,kind", "a.jpg,cat", (0, Some(1), None)),
            ("image,photo", "http://x,a.jpg", (1, Some(0), None)),
            ("name,emotion,Usage", "1,sad,Training", (0, Some(1), Some(2))),
            ("path", "a.jpg", (0, None, None)),
        ] {
            assert_eq!(chosen(header, row, &TableOptions::default()), Ok(expected), "{header}");
        }
        let (names, rows) = table("file,breed,is_valid", "a.jpg,pug,True");
        let guess = choose(&names, &rows, &TableOptions::default()).unwrap().guess;
        assert_eq!(guess, "images from the column `file`, labels from `breed`, splits from `is_valid`");
    }

    #[test]
    fn given_columns_count_and_wrong_ones_are_named() {
        let options = TableOptions { label_column: Some("coarse".into()), ..TableOptions::default() };
        assert_eq!(chosen("path,label,coarse", "a.jpg,cat,pet", &options), Ok((0, Some(2), None)));
        assert_eq!(chosen("path,label,Coarse", "a.jpg,cat,pet", &options), Ok((0, Some(2), None)));
        let error = chosen("path,corse", "a.jpg,pet", &options).unwrap_err();
        assert!(error.contains("no column `coarse`") && error.contains("did you mean `corse`"), "{error}");
        assert!(chosen("path,coarse,coarse", "a.jpg,b,c", &options).unwrap_err().contains("several columns"));
        let none = TableOptions::default();
        let error = chosen("path,width,height", "a.jpg,1,2", &none).unwrap_err();
        assert!(error.contains("label_column") && error.contains("`width`"), "{error}");
        assert!(chosen("a,b,c", "1,2,3", &none).unwrap_err().contains("image_column"));
        let same = TableOptions { image_column: Some("x".into()), label_column: Some("x".into()), ..none };
        assert!(chosen("x,y", "a.jpg,b", &same).unwrap_err().contains("two things"));
    }
}
