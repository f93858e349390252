//! Pictures: confusion matrices, saliency maps, filters and feature maps, rows of images with captions.

mod confusion;
mod heat;

use font8x8::UnicodeFonts;
use image::{
    Rgb, RgbImage,
    imageops::{self, FilterType},
};

pub use confusion::confusion;
pub use heat::{filters, map, overlay};

/// The color of text.
const INK: Rgb<u8> = Rgb([40, 40, 40]);
/// The color of secondary text.
const FAINT: Rgb<u8> = Rgb([120, 120, 120]);
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
/// Images smaller than this are enlarged, pixel by pixel.
const PANEL: u32 = 224;
/// The gap between panels in pixels.
const GAP: u32 = 8;

/// An image with a caption.
#[derive(Debug, Clone)]
pub struct Panel {
    /// The image.
    pub image: RgbImage,
    /// The caption, cut with dots if it does not fit.
    pub text: String,
}

/// Draws panels side by side under a title, with small images enlarged.
pub fn row(title: &str, panels: &[Panel]) -> RgbImage {
    let enlarged = |panel: &Panel| Panel { image: enlarged(&panel.image), text: panel.text.clone() };
    small_row(title, &panels.iter().map(enlarged).collect::<Vec<_>>())
}

/// Draws panels side by side under a title, in their own size.
pub fn small_row(title: &str, panels: &[Panel]) -> RgbImage {
    let images: Vec<&RgbImage> = panels.iter().map(|panel| &panel.image).collect();
    let width = images.iter().map(|image| image.width() + GAP).sum::<u32>() + GAP;
    let height = images.iter().map(|image| image.height()).max().unwrap_or(0) + 12 + 14 + 2 * GAP;
    let mut picture = RgbImage::from_pixel(width, height, PAPER);
    write(&mut picture, &cut(title, (width - GAP) / 8), GAP, GAP, FAINT);
    let mut left = GAP;
    for (image, panel) in images.iter().zip(panels) {
        imageops::replace(&mut picture, *image, i64::from(left), i64::from(GAP + 12));
        let text = cut(&panel.text, image.width() / 8);
        write(&mut picture, &text, left, GAP + 12 + image.height() + 4, INK);
        left += image.width() + GAP;
    }
    picture
}

/// Stacks pictures vertically.
pub fn column(rows: &[RgbImage]) -> RgbImage {
    let width = rows.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = rows.iter().map(RgbImage::height).sum::<u32>().max(1);
    let mut picture = RgbImage::from_pixel(width, height, PAPER);
    let mut top = 0;
    for row in rows {
        imageops::replace(&mut picture, row, 0, top);
        top += i64::from(row.height());
    }
    picture
}

/// Enlarges an image to at least a panel's size by an integer factor.
fn enlarged(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    match PANEL / width.max(height).max(1) {
        0 | 1 => image.clone(),
        times => imageops::resize(image, width * times, height * times, FilterType::Nearest),
    }
}

/// Cuts the text to a number of characters.
fn cut(text: &str, letters: u32) -> String {
    let letters = letters as usize;
    match text.chars().count() > letters {
        true => text.chars().take(letters.saturating_sub(2)).collect::<String>() + "..",
        false => text.to_string(),
    }
}

/// Draws a line of text in an 8 × 8 pixel font with its upper left corner at (x, y).
fn write(picture: &mut RgbImage, text: &str, x: u32, y: u32, color: Rgb<u8>) {
    for (place, letter) in text.chars().enumerate() {
        let glyph = font8x8::BASIC_FONTS.get(letter).or_else(|| font8x8::LATIN_FONTS.get(letter));
        let Some(rows) = glyph.or_else(|| font8x8::BASIC_FONTS.get('?')) else { continue };
        for (row, bits) in rows.iter().enumerate() {
            for column in (0..8).filter(|column| bits >> column & 1 == 1) {
                let (x, y) = (x + 8 * place as u32 + column, y + row as u32);
                if x < picture.width() && y < picture.height() {
                    picture.put_pixel(x, y, color);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_side_by_side_and_small_ones_enlarged() {
        let panel = |side: u32, shade: u8| Panel {
            image: RgbImage::from_pixel(side, side, Rgb([shade, 0, 0])),
            text: "a name that is far too long to stand under it".to_string(),
        };
        let row = row("photo.jpg", &[panel(224, 10), panel(32, 20)]);
        assert_eq!(row.width(), 3 * GAP + 2 * 224);
        assert_eq!(row.get_pixel(GAP + 5, GAP + 12 + 5).0, [10, 0, 0]);
        assert_eq!(row.get_pixel(2 * GAP + 224 + 5, GAP + 12 + 5).0, [20, 0, 0]);
        let sheet = column(&[row.clone(), row.clone()]);
        assert_eq!(sheet.dimensions(), (row.width(), 2 * row.height()));
        assert_eq!(cut("abcdef", 4), "ab..");
        assert_eq!(cut("abcd", 4), "abcd");
    }
}
