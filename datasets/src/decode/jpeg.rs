//! JPEG (ITU-T T.81): baseline, extended and progressive, Huffman coded, 8 bits a sample.
//!
//! The arithmetic is that of libjpeg's default settings, which Pillow uses: the accurate integer inverse DCT, the
//! triangle ("fancy") upsampling of subsampled color and the fixed-point conversion to RGB. The pixels are equal.
//!
//! Only what a [`Window`] of the image needs is decoded: entropy coding requires parsing everything before it, but
//! blocks outside are neither dequantized nor transformed, rows below are not even parsed, and a window that is to be
//! shrunk can be transformed at 1/2, 1/4 or 1/8 of its size right away.
//!
//! Damage in the entropy-coded data is decoded as libjpeg does it: what is missing before a marker reads as zeros and
//! then stays gray, an impossible code is 0, and lost restart markers are resynchronized. A file that ends without its
//! end marker before its pixels do is an error, as in Pillow.

mod color;
mod entropy;
mod idct;
mod progressive;
mod standard;

pub(super) use self::color::{ink_to_light, ycc_to_rgb};
use self::{
    color::Colors,
    entropy::{Bits, Huffman, Pieces, Segments},
};
use super::{Damage, DecodeError, DecodeOptions, Decoded, Format, Limits, Result, filled, pixels};
use crate::{simd, transforms::Rect};

pub(super) fn broken(cause: impl ToString) -> DecodeError {
    Format::Jpeg.broken(cause)
}

fn unsupported(cause: impl ToString) -> DecodeError {
    Format::Jpeg.unsupported(cause)
}

/// A rectangle of the image in pixels of the full size, and the size of a block after the inverse DCT (8, 4, 2 or 1):
/// the scale is `block / 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub left: usize,
    pub top: usize,
    pub right: usize,
    pub bottom: usize,
    pub block: usize,
}

impl Window {
    /// The part of an image, at `block` pixels a block.
    pub fn of(part: Rect, block: usize) -> Self {
        let [left, top, width, height] = [part.left, part.top, part.width, part.height].map(|side| side as usize);
        Self { left, top, right: left + width, bottom: top + height, block }
    }

    /// The rectangle at the window's scale, grown to whole pixels.
    pub fn scaled(&self) -> Self {
        let (down, up) = (|x: usize| x * self.block / 8, |x: usize| (x * self.block).div_ceil(8));
        Self { left: down(self.left), top: down(self.top), right: up(self.right), bottom: up(self.bottom), ..*self }
    }
}

/// One color component of a frame.
struct Component {
    id: u8,
    /// Sampling factors.
    h: usize,
    v: usize,
    quant_slot: usize,
    /// The quantization table (zigzag order) at the component's first scan.
    quant: Option<[u16; 64]>,
    /// Blocks that hold pixels: what a scan of this component alone codes.
    blocks: (usize, usize),
    /// The side of a block after the inverse DCT.
    size: usize,
    /// The number of output pixels per sample.
    expand: (usize, usize),
    plane: Plane,
    /// Progressive only: all coefficients, padded to whole MCUs, in natural order.
    coefficients: Vec<[i16; 64]>,
    /// Columns of `coefficients`.
    coefficient_stride: usize,
}

/// The samples of one component that the window needs.
#[derive(Default)]
struct Plane {
    samples: Vec<u8>,
    stride: usize,
    /// The needed blocks: columns and rows.
    columns: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
    /// The position of the first sample in the component.
    left: usize,
    top: usize,
    /// The component's true size in samples.
    width: usize,
    height: usize,
}

struct Frame {
    width: usize,
    height: usize,
    h_max: usize,
    v_max: usize,
    progressive: bool,
    components: Vec<Component>,
}

#[derive(Default)]
struct Tables {
    quant: [Option<[u16; 64]>; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    restart_interval: usize,
    jfif: bool,
    adobe: Option<u8>,
}

/// What one component of a scan refers to.
#[derive(Clone, Copy)]
struct ScanComponent {
    index: usize,
    dc: usize,
    ac: usize,
}

/// The order in which zigzag positions lie in a block, row by row.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// More scans than any encoder writes: a file with more is made to waste time.
const MOST_SCANS: usize = 1000;

/// The work that is allowed: how often each block of the image is visited by scans, or this many visits for a small
/// image. Encoders write some 10 scans; one for each coefficient and bit of it would visit a block some 200 times, and
/// small images may.
const MOST_VISITS: u64 = 64;
const FREE_VISITS: u64 = 1 << 23;

/// What is wrong with a file, if that can be decoded around.
#[derive(Default)]
pub(super) struct Damages(Option<String>);

impl Damages {
    /// Notes the first damage.
    fn note(&mut self, cause: &str) {
        self.0.get_or_insert_with(|| cause.into());
    }

    /// Notes impossible codes among the bits read.
    fn codes(&mut self, bits: &Bits<'_>) {
        if bits.bad {
            self.note("codes that their Huffman table does not hold");
        }
    }

    fn restart(&mut self, in_order: bool) {
        if !in_order {
            self.note("restart markers are missing or out of order");
        }
    }

    /// Notes that a piece of the data has ended before its blocks. An error if that is where the file ends.
    fn ends_early(&mut self, pieces: &Pieces<'_>) -> Result<()> {
        const CAUSE: &str = "its entropy-coded data ends early";
        if pieces.is_cut() {
            return Err(broken(CAUSE));
        }
        self.note(CAUSE);
        Ok(())
    }
}

/// Decodes the window of an image; `window` is given the header's width and height. With `to_the_end`, rows below the
/// window are parsed too, so that damage there is found.
pub(super) fn decode(
    bytes: &[u8],
    options: &DecodeOptions,
    to_the_end: bool,
    window: impl FnOnce(usize, usize) -> Window,
) -> Result<Decoded> {
    let mut tables = Tables::default();
    let mut frame: Option<Frame> = None;
    let mut choose = Some(window);
    let mut chosen = None;
    let mut segments = Segments::default();
    let mut damages = Damages::default();
    let (mut at, mut scans, mut visits, mut ended) = (2, 0, 0, false);
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let (marker, length) = match *rest {
            [0xff, 0xff, ..] | [0..=0xfe, _, ..] => {
                at += 1;
                continue;
            }
            [0xff, 0x00..=0xbf | 0xd0..=0xd8, ..] => {
                at += 2;
                continue;
            }
            [0xff, 0xd9, ..] => {
                ended = true;
                break;
            }
            [0xff, marker, high, low, ..] => (marker, usize::from(u16::from_be_bytes([high, low]))),
            // The end marker is missing, which a baseline image can do without.
            _ => break,
        };
        let Some(segment) = rest.get(4..2 + length.max(2)) else {
            if scans > 0 {
                break;
            }
            return Err(broken("it ends inside a segment"));
        };
        at += 2 + length.max(2);
        match marker {
            0xc4 => tables.huffman(segment)?,
            0xdb => tables.quantization(segment)?,
            0xdd => {
                let &[high, low, ..] = segment else { return Err(broken("a short restart interval")) };
                tables.restart_interval = usize::from(u16::from_be_bytes([high, low]));
            }
            0xe0 if segment.starts_with(b"JFIF\0") => tables.jfif = true,
            0xee if segment.starts_with(b"Adobe") => tables.adobe = segment.get(11).copied(),
            0xc0..=0xc2 => {
                let Some(choose) = choose.take() else { return Err(broken("two frame headers")) };
                let mut new = Frame::parse(segment, marker == 0xc2)?;
                let window = choose(new.width, new.height);
                new.lay_out(&window, &options.limits)?;
                chosen = Some(window);
                frame = Some(new);
            }
            0xc3 | 0xc5..=0xc7 | 0xcb | 0xcd..=0xcf => return Err(unsupported("lossless or hierarchical coding")),
            0xc9 | 0xca => {
                return Err(unsupported("arithmetic coding; `jpegtran -huffman a.jpg > b.jpg` makes it readable"));
            }
            0xda => {
                let Some(frame) = &mut frame else { return Err(broken("a scan before the frame header")) };
                let scan = Scan::parse(segment, frame)?;
                scans += 1;
                visits += scan.visits(frame);
                if scans > MOST_SCANS || visits > FREE_VISITS.max(frame.blocks().saturating_mul(MOST_VISITS)) {
                    let [width, height] = [frame.width, frame.height].map(|side| side as u32);
                    return Err(DecodeError::TooMuchWork { scans, width, height });
                }
                at += segments.split(&bytes[at..], tables.restart_interval > 0);
                frame.scan(&scan, &mut tables, &segments, to_the_end, &mut damages, options)?;
            }
            _ => {}
        }
    }
    let (Some(mut frame), Some(window)) = (frame, chosen) else { return Err(broken("no frame header")) };
    if frame.components.iter().any(|component| component.quant.is_none()) {
        if !ended || scans == 0 {
            return Err(broken("it ends before all components were coded"));
        }
        damages.note("not all of its components were coded");
    }
    if frame.progressive && !ended {
        return Err(broken("it ends before its end marker: scans may be missing"));
    }
    if frame.progressive {
        simd::run(TransformAll(&mut frame));
    }
    options.check_cancel()?;
    let colors = Colors::of(&frame, tables.jfif, tables.adobe)?;
    let window = window.scaled();
    let (width, height) = (window.right - window.left, window.bottom - window.top);
    let mut samples = filled(width * height * 3, 0)?;
    simd::run(color::Conversion { colors: &colors, frame: &frame, window: &window, pixels: &mut samples });
    let image = pixels::rgb(width as u32, height as u32, samples)?;
    let damage = damages.0.map(|cause| Damage { format: Format::Jpeg, cause });
    Ok(Decoded { damage, ..Decoded::new(image) })
}

/// A SOS segment.
struct Scan {
    parts: Vec<ScanComponent>,
    /// The first and last zigzag position, and the bits of a progressive image.
    band: (u8, u8, u8),
}

impl Scan {
    fn parse(header: &[u8], frame: &Frame) -> Result<Self> {
        let short = || broken("a short scan header");
        let (&count, list) = header.split_first().ok_or_else(short)?;
        let (list, spectral) = list.split_at_checked(2 * usize::from(count)).ok_or_else(short)?;
        let &[first, last, approximation, ..] = spectral else { return Err(short()) };
        let mut parts: Vec<ScanComponent> = Vec::with_capacity(4);
        for entry in list.chunks_exact(2) {
            let index = frame.components.iter().position(|component| component.id == entry[0]);
            let index = index.ok_or_else(|| broken("a scan of an unknown component"))?;
            let (dc, ac) = (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
            if dc > 3 || ac > 3 || parts.iter().any(|other| other.index == index) {
                return Err(broken("a bad component in a scan header"));
            }
            parts.push(ScanComponent { index, dc, ac });
        }
        if parts.is_empty() || parts.len() > 4 {
            return Err(broken("a scan of no or too many components"));
        }
        Ok(Self { parts, band: (first, last, approximation) })
    }

    /// The number of blocks that the scan codes.
    fn visits(&self, frame: &Frame) -> u64 {
        self.parts.iter().map(|part| frame.components[part.index].num_blocks()).sum()
    }
}

impl Component {
    fn num_blocks(&self) -> u64 {
        self.blocks.0 as u64 * self.blocks.1 as u64
    }
}

impl Tables {
    /// A DHT segment.
    fn huffman(&mut self, mut rest: &[u8]) -> Result<()> {
        while let [class_and_slot, tail @ ..] = rest {
            let Some((counts, tail)) = tail.split_first_chunk::<16>() else {
                return Err(broken("a short Huffman table"));
            };
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let Some((symbols, tail)) = tail.split_at_checked(total) else {
                return Err(broken("a short Huffman table"));
            };
            let class = match class_and_slot >> 4 {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return Err(broken("an unknown class of Huffman table")),
            };
            let slot =
                class.get_mut(usize::from(class_and_slot & 15)).ok_or_else(|| broken("a fifth Huffman table"))?;
            *slot = Some(Huffman::new(counts, symbols, class_and_slot >> 4 == 0)?);
            rest = tail;
        }
        Ok(())
    }

    /// A DQT segment.
    fn quantization(&mut self, mut rest: &[u8]) -> Result<()> {
        while let [precision_and_slot, tail @ ..] = rest {
            let wide = precision_and_slot >> 4 != 0;
            let Some((values, tail)) = tail.split_at_checked(if wide { 128 } else { 64 }) else {
                return Err(broken("a short quantization table"));
            };
            let mut table = [0; 64];
            if wide {
                let pairs = values.chunks_exact(2);
                table.iter_mut().zip(pairs).for_each(|(to, pair)| *to = u16::from_be_bytes([pair[0], pair[1]]));
            } else {
                table.iter_mut().zip(values).for_each(|(to, value)| *to = u16::from(*value));
            }
            let slot = self.quant.get_mut(usize::from(precision_and_slot & 15));
            *slot.ok_or_else(|| broken("a fifth quantization table"))? = Some(table);
            rest = tail;
        }
        Ok(())
    }
}

impl Frame {
    /// A SOF0, SOF1 or SOF2 segment.
    fn parse(segment: &[u8], progressive: bool) -> Result<Self> {
        let &[bits, h0, h1, w0, w1, count, ref list @ ..] = segment else {
            return Err(broken("a short frame header"));
        };
        let [width, height] = [[w0, w1], [h0, h1]].map(|side| usize::from(u16::from_be_bytes(side)));
        if bits != 8 {
            return Err(unsupported(format_args!("{bits} bits a sample")));
        }
        if width == 0 || height == 0 {
            return Err(broken(format_args!("{width} × {height} pixels")));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(unsupported(format_args!("{count} color components")));
        }
        let components: Vec<Component> = list
            .chunks_exact(3)
            .take(usize::from(count))
            .map(|entry| {
                let (h, v) = (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
                if !(1..=4).contains(&h) || !(1..=4).contains(&v) || entry[2] > 3 {
                    return Err(broken("a bad component in the frame header"));
                }
                Ok(Component {
                    id: entry[0],
                    h,
                    v,
                    quant_slot: usize::from(entry[2]),
                    quant: None,
                    blocks: (0, 0),
                    size: 8,
                    expand: (1, 1),
                    plane: Plane::default(),
                    coefficients: Vec::new(),
                    coefficient_stride: 0,
                })
            })
            .collect::<Result<_>>()?;
        if components.len() != usize::from(count) {
            return Err(broken("a short frame header"));
        }
        let h_max = components.iter().map(|c| c.h).max().unwrap_or(1);
        let v_max = components.iter().map(|c| c.v).max().unwrap_or(1);
        Ok(Self { width, height, h_max, v_max, progressive, components })
    }

    /// The number of MCUs in a row and in a column of an interleaved scan.
    fn mcus(&self) -> (usize, usize) {
        (self.width.div_ceil(8 * self.h_max), self.height.div_ceil(8 * self.v_max))
    }

    /// The number of blocks of all components.
    fn blocks(&self) -> u64 {
        self.components.iter().map(Component::num_blocks).sum()
    }

    /// Chooses block sizes for the window's scale, finds the blocks it needs and allocates for them.
    fn lay_out(&mut self, window: &Window, limits: &Limits) -> Result<()> {
        let (h_max, v_max, width, height) = (self.h_max, self.v_max, self.width, self.height);
        let (mcus_x, mcus_y) = self.mcus();
        let scaled = window.scaled();
        let mut memory = (scaled.right - scaled.left) as u64 * (scaled.bottom - scaled.top) as u64 * 3;
        limits.check(width as u32, height as u32, 0)?;
        for component in &mut self.components {
            let (h, v) = (component.h, component.v);
            // A subsampled component may be transformed at a larger size instead of being upsampled afterwards.
            let mut size = window.block;
            while size < 8
                && (h_max * window.block).is_multiple_of(h * size * 2)
                && (v_max * window.block).is_multiple_of(v * size * 2)
            {
                size *= 2;
            }
            if !(h_max * window.block).is_multiple_of(h * size) || !(v_max * window.block).is_multiple_of(v * size) {
                return Err(unsupported("fractional sampling factors"));
            }
            component.size = size;
            component.expand = (h_max * window.block / (h * size), v_max * window.block / (v * size));
            component.blocks = ((width * h).div_ceil(8 * h_max), (height * v).div_ceil(8 * v_max));
            let samples = ((width * h * size).div_ceil(8 * h_max), (height * v * size).div_ceil(8 * v_max));
            // The triangle filter looks at one sample more on each side.
            let needed = |from: usize, to: usize, expand: usize, samples: usize, coded: usize| {
                let (from, to) = ((from / expand).saturating_sub(1), (to.div_ceil(expand) + 1).min(samples));
                from / size..to.div_ceil(size).min(coded)
            };
            let columns = needed(scaled.left, scaled.right, component.expand.0, samples.0, mcus_x * h);
            let rows = needed(scaled.top, scaled.bottom, component.expand.1, samples.1, mcus_y * v);
            let bytes = (columns.len() * rows.len() * size * size) as u64;
            let coefficients = if self.progressive { mcus_x * h * mcus_y * v } else { 0 };
            memory += bytes + coefficients as u64 * 128;
            component.plane = Plane {
                samples: Vec::new(),
                stride: columns.len() * size,
                left: columns.start * size,
                top: rows.start * size,
                columns,
                rows,
                width: samples.0,
                height: samples.1,
            };
            component.coefficient_stride = mcus_x * h;
        }
        if memory > limits.max_bytes {
            return Err(DecodeError::TooManyBytes { bytes: memory, max_bytes: limits.max_bytes });
        }
        for component in &mut self.components {
            let plane = &mut component.plane;
            // What damage leaves out is gray.
            plane.samples = filled(plane.stride * plane.rows.len() * component.size, 128)?;
            if self.progressive {
                component.coefficients = filled(component.coefficient_stride * mcus_y * component.v, [0; 64])?;
            }
        }
        Ok(())
    }

    /// Decodes the entropy-coded data of a scan.
    fn scan(
        &mut self,
        scan: &Scan,
        tables: &mut Tables,
        segments: &Segments,
        to_the_end: bool,
        damages: &mut Damages,
        options: &DecodeOptions,
    ) -> Result<()> {
        for part in &scan.parts {
            let component = &mut self.components[part.index];
            if component.quant.is_none() {
                component.quant = tables.quant[component.quant_slot];
                if component.quant.is_none() {
                    return Err(broken("a missing quantization table"));
                }
            }
        }
        if self.progressive {
            return progressive::scan(self, &scan.parts, scan.band, tables, segments, damages, options);
        }
        if tables.use_standard(&scan.parts)? {
            damages.note("it has no Huffman tables; the standard ones of Motion JPEG were used");
        }
        let missing = || broken("a missing Huffman table");
        let mut parts = Vec::with_capacity(4);
        let alone = scan.parts.len() == 1;
        for part in &scan.parts {
            let component = &mut self.components[part.index];
            let dc = tables.dc[part.dc].as_ref().ok_or_else(missing)?;
            let ac = tables.ac[part.ac].as_ref().ok_or_else(missing)?;
            let sides = if alone { (1, 1) } else { (component.h, component.v) };
            let quant = component.quant.unwrap_or([0; 64]);
            parts.push(Part {
                dc,
                ac,
                sides,
                quant,
                size: component.size,
                plane: std::mem::take(&mut component.plane),
            });
        }
        let mut mcus = if alone { self.components[scan.parts[0].index].blocks } else { self.mcus() };
        // A file that lacks its end marker may be cut: then all that should be there is parsed.
        if !to_the_end && segments.is_complete() {
            let last = parts.iter().map(|part| part.plane.rows.end.div_ceil(part.sides.1)).max();
            mcus.1 = mcus.1.min(last.unwrap_or(0));
        }
        let interval = tables.restart_interval;
        let result = simd::run(Baseline { parts: &mut parts, mcus, interval, segments, damages, options });
        for (part, done) in scan.parts.iter().zip(parts) {
            self.components[part.index].plane = done.plane;
        }
        result
    }
}

/// Progressive: the inverse DCT of all needed blocks, once all scans are read.
struct TransformAll<'a>(&'a mut Frame);

impl simd::Kernel for TransformAll<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for component in &mut self.0.components {
            let quant = component.quant.unwrap_or([0; 64]);
            for row in component.plane.rows.clone() {
                for column in component.plane.columns.clone() {
                    let mut block = component.coefficients[row * component.coefficient_stride + column];
                    for (zigzag, &natural) in ZIGZAG.iter().enumerate() {
                        let value = &mut block[usize::from(natural)];
                        *value = value.wrapping_mul(quant[zigzag] as i16);
                    }
                    component.plane.put(row, column, component.size, &block, 63);
                }
            }
        }
    }
}

/// A component's part of a baseline scan.
struct Part<'a> {
    dc: &'a Huffman,
    ac: &'a Huffman,
    /// Blocks of one MCU: columns and rows.
    sides: (usize, usize),
    quant: [u16; 64],
    size: usize,
    plane: Plane,
}

/// Decodes the entropy-coded data of a baseline scan, and transforms the blocks that are needed.
struct Baseline<'a, 'b> {
    parts: &'a mut [Part<'b>],
    mcus: (usize, usize),
    interval: usize,
    segments: &'a Segments,
    damages: &'a mut Damages,
    options: &'a DecodeOptions,
}

impl simd::Kernel for Baseline<'_, '_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self) -> Result<()> {
        let Self { parts, mcus, interval, segments, damages, options } = self;
        let mut predictions = [0i32; 4];
        let (mut pieces, mut bits) = segments.pieces();
        let mut until_restart = interval;
        // The current piece has ended before its blocks.
        let mut starved = false;
        'image: for mcu_y in 0..mcus.1 {
            options.check_cancel()?;
            for mcu_x in 0..mcus.0 {
                if interval > 0 && until_restart == 0 {
                    damages.codes(&bits);
                    let (next, in_order) = pieces.restart();
                    damages.restart(in_order);
                    starved &= next.is_none();
                    bits = next.unwrap_or(Bits::empty());
                    predictions = [0; 4];
                    until_restart = interval;
                }
                until_restart = until_restart.wrapping_sub(1);
                if starved {
                    if interval == 0 {
                        break 'image;
                    }
                    continue;
                }
                for (part, prediction) in parts.iter_mut().zip(&mut predictions) {
                    for v in 0..part.sides.1 {
                        let row = mcu_y * part.sides.1 + v;
                        let row_needed = part.plane.rows.contains(&row);
                        for h in 0..part.sides.0 {
                            let column = mcu_x * part.sides.0 + h;
                            if row_needed && part.plane.columns.contains(&column) {
                                let mut block = [0i16; 64];
                                let last = bits.block(part.dc, part.ac, prediction, &part.quant, &mut block);
                                part.plane.put(row, column, part.size, &block, last);
                            } else {
                                bits.skip_block(part.dc, part.ac, prediction);
                            }
                        }
                    }
                }
                if bits.overrun() {
                    damages.ends_early(&pieces)?;
                    starved = true;
                }
            }
        }
        damages.codes(&bits);
        Ok(())
    }
}

impl Plane {
    /// Transforms one block of dequantized coefficients into the output; `last` is the last zigzag position in use.
    #[inline(always)]
    fn put(&mut self, row: usize, column: usize, size: usize, block: &[i16; 64], last: usize) {
        let start = (row - self.rows.start) * size * self.stride + (column - self.columns.start) * size;
        idct::transform(block, last, size, &mut self.samples[start..], self.stride);
    }

    /// The row of samples at `y` (clamped to the component) that starts at the plane's left edge.
    #[inline(always)]
    fn row(&self, y: usize) -> &[u8] {
        let start = (y.min(self.height - 1) - self.top) * self.stride;
        &self.samples[start..start + self.stride]
    }
}
