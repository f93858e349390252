//! Shears, shifts and rotations: Pillow's `Image.transform` and `Image.rotate`, pixel for pixel.

use image::RgbImage;

use super::Interpolation;

/// Maps output to input: `x = m[0]·X + m[1]·Y + m[2]`, `y = m[3]·X + m[4]·Y + m[5]`, pixel centers at halves.
pub(crate) type Matrix = [f64; 6];

/// The inverse of the affine map of torchvision's `affine` at scale 1 without rotation: a shear (radians along x and
/// y) about `center`, then a shift by `translate` pixels.
pub(crate) fn inverse_affine(center: [f64; 2], translate: [f64; 2], shear: [f64; 2]) -> Matrix {
    let ([cx, cy], [tx, ty], [sx, sy]) = (center, translate, shear);
    let a = libm::cos(-sy) / libm::cos(sy);
    let b = -libm::cos(-sy) * libm::tan(sx) / libm::cos(sy);
    let c = libm::sin(-sy) / libm::cos(sy);
    let d = -libm::sin(-sy) * libm::tan(sx) / libm::cos(sy) + 1.0;
    let mut m = [d, -b, 0.0, -c, a, 0.0];
    m[2] = m[0] * (-cx - tx) + m[1] * (-cy - ty) + cx;
    m[5] = m[3] * (-cx - tx) + m[4] * (-cy - ty) + cy;
    m
}

/// Shears along x by the tangent `level`, about the upper left corner.
pub fn shear_x(image: &RgbImage, level: f64, interpolation: Interpolation) -> RgbImage {
    transform(image, inverse_affine([0.0; 2], [0.0; 2], [libm::atan(level), 0.0]), interpolation)
}

/// Shears along y by the tangent `level`, about the upper left corner.
pub fn shear_y(image: &RgbImage, level: f64, interpolation: Interpolation) -> RgbImage {
    transform(image, inverse_affine([0.0; 2], [0.0; 2], [0.0, libm::atan(level)]), interpolation)
}

/// Shifts by whole pixels, to the right and down.
pub fn translate(image: &RgbImage, x: i32, y: i32, interpolation: Interpolation) -> RgbImage {
    let center = [f64::from(image.width()) * 0.5, f64::from(image.height()) * 0.5];
    transform(image, inverse_affine(center, [f64::from(x), f64::from(y)], [0.0; 2]), interpolation)
}

/// Rotates counter-clockwise about the center; the size stays.
pub fn rotate(image: &RgbImage, degrees: f64, interpolation: Interpolation) -> RgbImage {
    let turned = degrees.rem_euclid(360.0);
    if turned == 0.0 {
        return image.clone();
    }
    let angle = -turned.to_radians();
    // Python's round(value, 15), which makes right angles exact.
    let round = |value: f64| (value * 1e15).round_ties_even() / 1e15;
    let (sin, cos) = (round(libm::sin(angle)), round(libm::cos(angle)));
    let (cx, cy) = (f64::from(image.width()) / 2.0, f64::from(image.height()) / 2.0);
    let x = cos * -cx + sin * -cy + cx;
    let y = -sin * -cx + cos * -cy + cy;
    transform(image, [cos, sin, x, -sin, cos, y], interpolation)
}

/// Pillow's `Image.transform(size, AFFINE, matrix)`; black where the input ends.
pub(crate) fn transform(image: &RgbImage, matrix: Matrix, interpolation: Interpolation) -> RgbImage {
    let mut out = RgbImage::new(image.width(), image.height());
    match interpolation {
        Interpolation::Nearest => nearest(image, matrix, &mut out),
        Interpolation::Bilinear => interpolate(image, matrix, &mut out, bilinear),
        Interpolation::Bicubic => interpolate(image, matrix, &mut out, bicubic),
    }
    out
}

/// The nearest pixel, in 16 fraction bits, or exactly where the axes stay straight.
fn nearest(image: &RgbImage, m: Matrix, out: &mut RgbImage) {
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let straight = m[1] == 0.0 && m[3] == 0.0;
    let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let step = [m[0], m[1], m[3], m[4]].map(fixed);
    let start = [fixed(m[2] + m[0] * 0.5 + m[1] * 0.5), fixed(m[5] + m[3] * 0.5 + m[4] * 0.5)];
    for (x, y, pixel) in out.enumerate_pixels_mut() {
        let (x_in, y_in) = if straight {
            let at = |scale: f64, shift: f64, position: u32| (shift + scale * (f64::from(position) + 0.5)).floor();
            (at(m[0], m[2], x) as i64, at(m[4], m[5], y) as i64)
        } else {
            let (x, y) = (i64::from(x), i64::from(y));
            ((start[0] + x * step[0] + y * step[1]) >> 16, (start[1] + x * step[2] + y * step[3]) >> 16)
        };
        if (0..width).contains(&x_in) && (0..height).contains(&y_in) {
            *pixel = *image.get_pixel(x_in as u32, y_in as u32);
        }
    }
}

/// Computes each output pixel from its position in the input by `sample(image, x, y, channel)`.
fn interpolate(image: &RgbImage, m: Matrix, out: &mut RgbImage, sample: fn(&RgbImage, f64, f64, usize) -> f64) {
    let (width, height) = (f64::from(image.width()), f64::from(image.height()));
    for (x, y, pixel) in out.enumerate_pixels_mut() {
        let (x, y) = (f64::from(x) + 0.5, f64::from(y) + 0.5);
        let (x, y) = (m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]);
        if (0.0..width).contains(&x) && (0.0..height).contains(&y) {
            pixel.0 = std::array::from_fn(|channel| sample(image, x - 0.5, y - 0.5, channel).clamp(0.0, 255.0) as u8);
        }
    }
}

/// Returns the value at a pixel, or the nearest edge pixel outside the image.
fn clamped(image: &RgbImage, x: f64, y: f64, channel: usize) -> f64 {
    let at = |position: f64, side: u32| position.clamp(0.0, f64::from(side) - 1.0) as u32;
    f64::from(image.get_pixel(at(x, image.width()), at(y, image.height()))[channel])
}

fn bilinear(image: &RgbImage, x: f64, y: f64, channel: usize) -> f64 {
    let (left, top) = (x.floor(), y.floor());
    let row = |y: f64| {
        let (a, b) = (clamped(image, left, y, channel), clamped(image, left + 1.0, y, channel));
        a + (b - a) * (x - left)
    };
    let (a, b) = (row(top), row(top + 1.0));
    a + (b - a) * (y - top)
}

/// Pillow's cubic convolution, a = −1.
fn bicubic(image: &RgbImage, x: f64, y: f64, channel: usize) -> f64 {
    let cubic = |v: [f64; 4], d: f64| {
        let p2 = v[2] - v[0];
        let p3 = 2.0 * (v[0] - v[1]) + v[2] - v[3];
        let p4 = -v[0] + v[1] - v[2] + v[3];
        v[1] + d * (p2 + d * (p3 + d * p4))
    };
    let (left, top) = (x.floor(), y.floor());
    let row = |y: f64| cubic(std::array::from_fn(|i| clamped(image, left + i as f64 - 1.0, y, channel)), x - left);
    cubic(std::array::from_fn(|i| row(top + i as f64 - 1.0)), y - top)
}
