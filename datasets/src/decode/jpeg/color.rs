//! From component planes to RGB: upsampling and color conversion.

use super::{Component, Frame, Plane, Result, Window, unsupported};
use crate::simd;

/// What the components of a frame mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Model {
    Gray,
    Rgb,
    YCbCr,
    /// Inverted, as Adobe writes it and Pillow expects it.
    Cmyk,
    /// CMY coded as YCbCr, inverted.
    Ycck,
}

/// How the samples of one component become those of the output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upsampling {
    /// As they are.
    None,
    /// The triangle filter along rows.
    Columns,
    /// The triangle filter along columns.
    Rows,
    /// Both.
    Both,
    /// Repeated.
    Repeat,
}

/// The way from planes to RGB.
pub(super) struct Colors {
    model: Model,
    upsampling: Vec<Upsampling>,
}

impl Colors {
    /// Decides as libjpeg does: a JFIF marker, Adobe's marker, the components' names, in this order.
    pub fn of(frame: &Frame, jfif: bool, adobe: Option<u8>) -> Result<Self> {
        let names: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        let model = match (names.len(), adobe) {
            (1, _) => Model::Gray,
            (3, _) if jfif => Model::YCbCr,
            (3, Some(0)) => Model::Rgb,
            (3, None) if names == *b"RGB" => Model::Rgb,
            (3, _) => Model::YCbCr,
            (4, None | Some(0)) => Model::Cmyk,
            (4, _) => Model::Ycck,
            (count, _) => return Err(unsupported(format_args!("{count} color components"))),
        };
        let upsampling = frame.components.iter().map(Upsampling::of).collect();
        Ok(Self { model, upsampling })
    }

    /// Writes the RGB pixels of the window, which is given at its own scale.
    #[inline(always)]
    fn convert(&self, frame: &Frame, window: &Window, pixels: &mut [u8]) {
        let width = window.right - window.left;
        // A gray component repeated by its own sampling factors is expanded by (1, 1): `h_max` is its own.
        let mut rows = vec![vec![0u8; width + 2]; frame.components.len()];
        let mut sums = vec![0u16; width + 4];
        for (y, out) in (window.top..window.bottom).zip(pixels.chunks_exact_mut(width * 3)) {
            for ((component, upsampling), row) in frame.components.iter().zip(&self.upsampling).zip(&mut rows) {
                upsampling.row(component, y, window.left, width, &mut sums, row);
            }
            match (self.model, rows.as_slice()) {
                (Model::Gray, [gray, ..]) => {
                    for (out, gray) in out.chunks_exact_mut(3).zip(gray) {
                        out.fill(*gray);
                    }
                }
                (Model::Rgb, [r, g, b, ..]) => {
                    for (((out, r), g), b) in out.chunks_exact_mut(3).zip(r).zip(g).zip(b) {
                        out.copy_from_slice(&[*r, *g, *b]);
                    }
                }
                (Model::YCbCr, [y, cb, cr, ..]) => {
                    for (((out, y), cb), cr) in out.chunks_exact_mut(3).zip(y).zip(cb).zip(cr) {
                        let rgb = ycc_to_rgb(*y, *cb, *cr);
                        out[0] = rgb[0];
                        out[1] = rgb[1];
                        out[2] = rgb[2];
                    }
                }
                (Model::Cmyk, [c, m, y, k, ..]) => {
                    for ((((out, c), m), y), k) in out.chunks_exact_mut(3).zip(c).zip(m).zip(y).zip(k) {
                        out.copy_from_slice(&[*c, *m, *y].map(|ink| ink_to_light(255 - ink, *k)));
                    }
                }
                (Model::Ycck, [y, cb, cr, k, ..]) => {
                    for ((((out, y), cb), cr), k) in out.chunks_exact_mut(3).zip(y).zip(cb).zip(cr).zip(k) {
                        out.copy_from_slice(&ycc_to_rgb(*y, *cb, *cr).map(|ink| ink_to_light(ink, *k)));
                    }
                }
                _ => unreachable!("the model was chosen by the number of components"),
            }
        }
    }
}

/// The conversion of a window, which is given at its own scale, to RGB pixels.
pub(super) struct Conversion<'a> {
    pub colors: &'a Colors,
    pub frame: &'a Frame,
    pub window: &'a Window,
    pub pixels: &'a mut [u8],
}

impl simd::Kernel for Conversion<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.colors.convert(self.frame, self.window, self.pixels);
    }
}

/// ITU-R BT.601 over the full range, in 16 fraction bits.
#[inline(always)]
pub(in crate::decode) fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb).wrapping_sub(128), i32::from(cr).wrapping_sub(128));
    let red = cr.wrapping_mul(91881).wrapping_add(HALF) >> 16;
    let green = cb.wrapping_mul(-22554).wrapping_add(cr.wrapping_mul(-46802)).wrapping_add(HALF) >> 16;
    let blue = cb.wrapping_mul(116_130).wrapping_add(HALF) >> 16;
    [
        y.wrapping_add(red).clamp(0, 255) as u8,
        y.wrapping_add(green).clamp(0, 255) as u8,
        y.wrapping_add(blue).clamp(0, 255) as u8,
    ]
}

/// Pillow's conversion of one ink and black (`white` is 255 − black) to light.
#[inline(always)]
pub(in crate::decode) fn ink_to_light(ink: u8, white: u8) -> u8 {
    let product = u32::from(ink) * u32::from(white) + 128;
    white.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

impl Upsampling {
    fn of(component: &Component) -> Self {
        // Below three samples a row libjpeg repeats.
        let wide = component.plane.width > 2;
        match component.expand {
            (1, 1) => Self::None,
            (2, 1) if wide => Self::Columns,
            (2, 2) if wide => Self::Both,
            (1, 2) => Self::Rows,
            _ => Self::Repeat,
        }
    }

    /// The component's part of output row `y`, from output column `left` on: `width` samples of `out`.
    #[inline(always)]
    fn row(self, component: &Component, y: usize, left: usize, width: usize, sums: &mut [u16], out: &mut [u8]) {
        let plane = &component.plane;
        let (expand_x, expand_y) = component.expand;
        let near = plane.row(y / expand_y);
        match self {
            Self::None => out[..width].copy_from_slice(&near[left - plane.left..][..width]),
            Self::Repeat => {
                for (x, out) in out[..width].iter_mut().enumerate() {
                    *out = near[(left + x) / expand_x - plane.left];
                }
            }
            Self::Rows => {
                let (far, bias) = plane.neighbor(y);
                let (near, far) = (&near[left - plane.left..][..width], &far[left - plane.left..][..width]);
                for ((out, near), far) in out.iter_mut().zip(near).zip(far) {
                    *out =
                        (u16::from(*near).wrapping_mul(3).wrapping_add(u16::from(*far)).wrapping_add(bias) >> 2) as u8;
                }
            }
            Self::Columns => {
                plane.with_neighbors(left, width, sums, |at| u16::from(near[at]));
                expand_columns::<1, 2, 2>(sums, left, width, out);
            }
            Self::Both => {
                let (far, _) = plane.neighbor(y);
                let far = &far[..near.len()];
                plane.with_neighbors(left, width, sums, |at| {
                    u16::from(near[at]).wrapping_mul(3).wrapping_add(u16::from(far[at]))
                });
                expand_columns::<8, 7, 4>(sums, left, width, out);
            }
        }
    }
}

/// The triangle filter along a row: each sample of `sums` (which starts one before the first) becomes two.
#[inline(always)]
fn expand_columns<const EVEN: u16, const ODD: u16, const SHIFT: u32>(
    sums: &[u16],
    left: usize,
    width: usize,
    out: &mut [u8],
) {
    let blend =
        |near: u16, far: u16, bias: u16| (near.wrapping_mul(3).wrapping_add(far).wrapping_add(bias) >> SHIFT) as u8;
    let (skip, out) = (left % 2, &mut out[..width + left % 2]);
    let pairs = out.len() / 2;
    let (before, here, after) = (&sums[..pairs + 1], &sums[1..pairs + 2], &sums[2..pairs + 3]);
    for (i, out) in out.chunks_exact_mut(2).enumerate() {
        out[0] = blend(here[i], before[i], EVEN);
        out[1] = blend(here[i], after[i], ODD);
    }
    if out.len() % 2 == 1 {
        out[2 * pairs] = blend(here[pairs], before[pairs], EVEN);
    }
    out.copy_within(skip.., 0);
}

impl Plane {
    /// The row of samples on the other side of output row `y`, for twice as many output rows, and the rounding bias.
    #[inline(always)]
    fn neighbor(&self, y: usize) -> (&[u8], u16) {
        if y.is_multiple_of(2) { (self.row((y / 2).saturating_sub(1)), 1) } else { (self.row(y / 2 + 1), 2) }
    }

    /// `value` of the samples behind output columns `left..left + width` (two a sample), and of one more on each
    /// side. Beyond the component's edge its last sample is repeated.
    #[inline(always)]
    fn with_neighbors(&self, left: usize, width: usize, sums: &mut [u16], value: impl Fn(usize) -> u16) {
        let (first, last) = (left / 2, (left + width).div_ceil(2));
        let end = last.min(self.width) - self.left;
        let start = first - self.left;
        for (sum, at) in sums[1..].iter_mut().zip(start..end) {
            *sum = value(at);
        }
        sums[0] = value((first.max(1) - 1).max(self.left) - self.left);
        let beyond = value(last.min(self.width - 1) - self.left);
        sums[1 + end - start..=1 + last - first].fill(beyond);
    }
}
