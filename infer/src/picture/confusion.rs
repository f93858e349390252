//! Draws the confusion matrix.

use std::collections::BTreeMap;

use image::{Rgb, RgbImage};

use super::{INK, write};

/// The largest number of classes whose names are written beside the rows.
const NAMED: usize = 60;

/// Draws the confusion matrix: rows are true classes, columns predicted ones, colored by the fraction of the row. The
/// diagonal is blue, errors are orange; a single error among many remains visible.
pub fn confusion(names: &[String], counts: &BTreeMap<(usize, usize), usize>) -> RgbImage {
    let classes = names.len().max(1) as u32;
    let cell = (800 / classes).clamp(1, 32);
    let named = names.len() <= NAMED && cell >= 9;
    let longest = names.iter().map(|name| name.chars().count().min(24)).max().unwrap_or(0) as u32;
    let left = if named { 8 * longest + 12 } else { 4 };
    let mut picture = RgbImage::from_pixel(left + cell * classes + 4, cell * classes + 8, Rgb([255, 255, 255]));
    let mut rows = vec![0usize; names.len()];
    for (&(label, _), count) in counts {
        if let Some(row) = rows.get_mut(label) {
            *row += count;
        }
    }
    for label in 0..classes {
        for predicted in 0..classes {
            let count = counts.get(&(label as usize, predicted as usize)).copied().unwrap_or(0);
            let share = count as f64 / rows[label as usize].max(1) as f64;
            let (color, strength) = match (count, label == predicted) {
                (0, _) => ([244, 244, 240], 1.0),
                (_, true) => ([0, 114, 178], 0.1 + 0.9 * share),
                (_, false) => ([213, 94, 0], 0.15 + 0.85 * share.sqrt()),
            };
            let mixed = color.map(|c: u8| (255.0 - (255.0 - f64::from(c)) * strength).round() as u8);
            let gap = u32::from(cell > 4);
            for y in 0..cell - gap {
                for x in 0..cell - gap {
                    picture.put_pixel(left + predicted * cell + x, 4 + label * cell + y, Rgb(mixed));
                }
            }
        }
        if named {
            let name: String = names[label as usize].chars().take(24).collect();
            let width = 8 * name.chars().count() as u32;
            write(&mut picture, &name, left - 6 - width, 4 + label * cell + (cell - 8) / 2, INK);
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_colors_hits_and_mistakes() {
        let names = ["cat", "dog", "éléphant"].map(String::from);
        let counts = BTreeMap::from([((0, 0), 9), ((0, 1), 1), ((1, 1), 5)]);
        let picture = confusion(&names, &counts);
        let left = picture.width() - 4 - 3 * 32;
        let at = |label: u32, predicted: u32| picture.get_pixel(left + predicted * 32 + 3, 4 + label * 32 + 3).0;
        assert!(at(0, 0)[2] > at(0, 0)[0], "right is blue");
        assert!(at(0, 1)[0] > at(0, 1)[2], "wrong is orange");
        assert_eq!(at(2, 2), [244, 244, 240], "nothing is gray");
        assert!(picture.pixels().any(|pixel| pixel.0 == [40, 40, 40]), "names are written");
        let many: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        assert_eq!(confusion(&many, &counts).width(), 1008);
    }
}
