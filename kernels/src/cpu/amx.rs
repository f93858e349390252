//! GEMM in bf16 by AMX, for feature maps in f32 or bf16. The processor multiplies two tiles of 16 rows × 32 values in one
//! instruction, sixteen times the multiply-adds of an instruction in [`super::bf16`].
//!
//! The rows of an AMX tile are a constant number of bytes apart. A task therefore first rounds the pixels that it reads
//! into *stride phase planes*, with the zeros of the padding: pixel `(y, x)` belongs to the plane
//! `(y mod stride, x mod stride)`. The pixels that consecutive outputs multiply with one tap are then neighbors:
//!
//! ```text
//! stride 2, padded input            phase planes
//!   a b a b a b                       a a a    b b b
//!   c d c d c d          ──▶          a a a    b b b
//!   a b a b a b                       c c c    d d d        outputs 0 1 2 of a row, tap (0, 0): a a a
//!   c d c d c d                       c c c    d d d                          tap (0, 1): b b b
//! ```
//!
//! The few outputs between the end of a row and the start of the next are computed and discarded.

use ::half::bf16;

use super::{
    buffer_pool::elements,
    conv::{self, Tap},
};

/// Whether this processor and this system have AMX for bf16.
pub fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *AVAILABLE.get_or_init(imp::ask)
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// The values of a feature map.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// f32, rounded to bf16 as they are gathered.
    F32(&'a [f32]),
    /// bf16.
    Bf16(&'a [bf16]),
}

/// An output feature map.
#[derive(Debug)]
pub enum Output<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// bf16, rounded to nearest, ties to even.
    Bf16(&'a mut [bf16]),
}

/// An implicit GEMM, `out[pixel] = Σ_tap x[pixel · stride + tap] · weights[tap]`, with its epilogue.
pub struct Product<'a> {
    /// Images.
    pub n: usize,
    /// `[n, height, width, pitch]`.
    pub x: Values<'a>,
    /// `[height, width]` of `x`.
    pub input: [usize; 2],
    /// Values from pixel to pixel of `x`.
    pub pitch: usize,
    /// Steps in `x` between pixels of the output.
    pub stride: [usize; 2],
    /// The kernel positions summed over. Where `k` exceeds the channels of a pixel, the sum continues over the pixels to
    /// the right, all of which must be inside `x`.
    pub taps: &'a [Tap],
    /// Right operand.
    pub weights: &'a crate::cpu::bf16::Packed,
    /// `[height, width]` of the output, whose pixels have the channels of the weights.
    pub output: [usize; 2],
    /// Multiplies each channel of the output.
    pub scale: Option<&'a [f32]>,
    /// Added to each channel of the output.
    pub bias: Option<&'a [f32]>,
    /// Added to each value; laid out as the output is.
    pub residual: Option<Values<'a>>,
    /// Whether ReLU is applied last.
    pub relu: bool,
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }
}

impl Product<'_> {
    /// Asserts what the reads and writes rely on, for an output of `len` values. O(1), but for the taps.
    fn check(&self, len: usize) {
        let Self { n, input, pitch, stride, output, weights, .. } = *self;
        let [k, channels] = [weights.k, weights.channels];
        assert!(self.x.len() == elements([n, input[0], input[1], pitch]), "{} values of {input:?}", self.x.len());
        assert!(len == elements([n, output[0], output[1], channels]), "{len} values for an output of {output:?}");
        let epilogue = conv::Epilogue { scale: self.scale, bias: self.bias, residual: None, relu: self.relu };
        epilogue.check(channels, len);
        assert!(self.residual.is_none_or(|residual| residual.len() == len), "a residual for an output of {len} values");
        assert!(stride[0] > 0 && stride[1] > 0, "a stride of zero");
        for tap in self.taps {
            assert!(tap.index < weights.taps, "{tap:?} of {} taps", weights.taps);
            if k > pitch && len > 0 {
                // Sums continue over the pixels to the right.
                let row = usize::try_from(tap.down).ok().and_then(|down| down.checked_add((output[0] - 1) * stride[0]));
                let right =
                    usize::try_from(tap.right).ok().and_then(|right| right.checked_add((output[1] - 1) * stride[1]));
                let end = right.and_then(|right| right.checked_mul(pitch)?.checked_add(k));
                assert!(
                    row.is_some_and(|row| row < input[0]) && end.is_some_and(|end| end <= input[1] * pitch),
                    "{k} values do not fit into rows of {} pixels for {tap:?}",
                    input[1]
                );
            }
        }
    }

    /// Computes into `out`, `[n, height, width, channels]`.
    ///
    /// # Panics
    /// Where AMX [is not available](is_available), or if the length of a slice does not match the sizes, or a tap
    /// has no weights.
    pub fn run(&self, out: Output<'_>) {
        assert!(is_available(), "this processor has no AMX for bf16");
        self.check(match &out {
            Output::F32(out) => out.len(),
            Output::Bf16(out) => out.len(),
        });
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        imp::run(self, out);
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        let _ = out;
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod imp {
    use std::{arch::asm, arch::x86_64::*, ops::Range};

    use super::{bf16, *};
    use crate::cpu::{
        bf16::{LANES, PANEL, round_into},
        buffer_pool::Buffer,
        disjoint::{DisjointSlice, part},
        thread_pool::{tasks, threads},
        tile,
    };

    /// Rows of a tile.
    const ROWS: usize = 16;
    /// Values in a row of a tile.
    const VALUES: usize = 32;
    /// Bytes of the rounded pixels of a unit of work.
    const UNIT: usize = 192 << 10;
    /// The same of a task, which goes over them again for each panel of weights: they should stay in a core's L2 cache.
    const TASK: usize = 512 << 10;
    /// Weights (bytes) that stay in that cache beside them, so that tasks can be small.
    const FEW_WEIGHTS: usize = 256 << 10;

    /// Asks the processor, and the system for leave to use the tiles' registers.
    pub fn ask() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        let has = crate::cpu::bf16::is_available()
            && __cpuid(0).eax >= 7
            && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES;
        // SAFETY: the call changes nothing but what the process may do.
        has && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    /// How the work is laid out; lengths and offsets count bf16 values.
    struct Plan<'a> {
        product: &'a Product<'a>,
        /// Images, rows and columns of the output.
        output: [usize; 3],
        /// Rows and columns of an image of the input.
        input: [usize; 2],
        layout: Layout,
        /// From an output to the next.
        step: usize,
        /// Outputs from row to row of a run, including discarded ones.
        columns: usize,
        /// From a run of outputs to the next: all rows of a unit are one, or each is.
        run_step: Option<usize>,
        /// For each tap where an output's first one reads, and its position in the weights.
        taps: Vec<[usize; 2]>,
        /// Units of an image, each some rows of the output.
        strips: usize,
        unit_len: usize,
    }

    enum Layout {
        /// Each the pixels at some positions by the stride, from these of the input on.
        Planes { firsts: Vec<[isize; 2]>, rows: usize, more_rows: usize, pitch: usize },
        /// Rows of the input as they lie, and how many more than those of the first tap: what a tap sums over begins at any
        /// offset.
        Rows { more_rows: usize },
    }

    /// Values from pixel to pixel, so that the rows of a tile do not fall on the same few sets of the L1 cache.
    fn pitch_of(k: usize) -> usize {
        let pitch = k.next_multiple_of(VALUES);
        if pitch.is_multiple_of(512) { pitch + VALUES } else { pitch }
    }

    /// The rows of a strip; where each is one output, as many as whole tiles have.
    fn strip([height, width]: [usize; 2], strips: usize, index: usize) -> Range<usize> {
        part(height, strips, index, if width == 1 { 2 * ROWS } else { 1 })
    }

    impl<'a> Plan<'a> {
        fn new(product: &'a Product<'a>) -> Self {
            let [mut height, mut width] = product.output;
            let (mut n, mut input) = (product.n, product.input);
            let k = product.weights.k;
            let pointwise = matches!(product.taps, [Tap { down: 0, right: 0, .. }]) && product.stride == [1, 1];
            if pointwise && input == [height, width] {
                // Nothing tells one row from the next.
                (n, height, width) = (1, n * height * width, 1);
                input = [height, 1];
            }
            let strips_of = |row_len: usize, more: usize| {
                let rows = (UNIT / 2 / row_len).saturating_sub(more).max(1);
                height.div_ceil(rows)
            };
            let longest =
                |strips: usize| (0..strips).map(|index| strip([height, width], strips, index).len()).max().unwrap_or(0);
            let stride = product.stride;
            if k > product.pitch {
                let row = input[1] * product.pitch;
                let at = |tap: &Tap| tap.down as usize * row + tap.right as usize * product.pitch;
                let more_rows = product.taps.iter().map(|tap| tap.down as usize).max().unwrap_or(0);
                let strips = strips_of(row * stride[0], more_rows);
                return Self {
                    product,
                    output: [n, height, width],
                    input,
                    layout: Layout::Rows { more_rows },
                    step: stride[1] * product.pitch,
                    columns: width,
                    run_step: Some(stride[0] * row),
                    taps: product.taps.iter().map(|tap| [at(tap), tap.index]).collect(),
                    strips,
                    unit_len: ((longest(strips) - 1) * stride[0] + 1 + more_rows) * row,
                };
            }
            let pitch = pitch_of(k);
            let [down, right] =
                [|tap: &Tap| tap.down, |tap: &Tap| tap.right].map(|of| product.taps.iter().map(of).min().unwrap_or(0));
            let mut firsts: Vec<[isize; 2]> = Vec::new();
            // For each tap its plane, and how far from the plane's first pixel.
            let positions: Vec<[usize; 3]> = product
                .taps
                .iter()
                .map(|tap| {
                    let [y, x] = [(tap.down - down) as usize, (tap.right - right) as usize];
                    let first = [down + (y % stride[0]) as isize, right + (x % stride[1]) as isize];
                    let plane = firsts.iter().position(|&other| other == first).unwrap_or_else(|| {
                        firsts.push(first);
                        firsts.len() - 1
                    });
                    [plane, y / stride[0], x / stride[1]]
                })
                .collect();
            let [more_rows, more_columns] =
                [1, 2].map(|axis| positions.iter().map(|position| position[axis]).max().unwrap_or(0));
            let columns = width + more_columns;
            let strips = strips_of(firsts.len() * columns * pitch, more_rows);
            let rows = longest(strips) + more_rows;
            let plane = rows * columns * pitch;
            let taps = positions.iter().zip(product.taps);
            Self {
                product,
                output: [n, height, width],
                input,
                step: pitch,
                columns,
                run_step: None,
                taps: taps.map(|(&[i, y, x], tap)| [i * plane + (y * columns + x) * pitch, tap.index]).collect(),
                strips,
                unit_len: firsts.len() * plane,
                layout: Layout::Planes { firsts, rows, more_rows, pitch },
            }
        }

        /// The image and the rows of the output of a unit.
        fn rows(&self, unit: usize) -> (usize, Range<usize>) {
            let [_, height, width] = self.output;
            (unit / self.strips, strip([height, width], self.strips, unit % self.strips))
        }
    }

    /// See [`Product::run`]; the processor must have AMX.
    pub fn run(product: &Product<'_>, out: Output<'_>) {
        let weights = product.weights;
        let pixels = product.n * product.output[0] * product.output[1];
        if pixels == 0 || weights.channels == 0 {
            return;
        }
        let out = match out {
            Output::F32(out) => Outputs::F32(DisjointSlice::new(out)),
            Output::Bf16(out) => Outputs::Bf16(DisjointSlice::new(out)),
        };
        let plan = Plan::new(product);
        let units = plan.output[0] * plan.strips;
        let panels = weights.channels.div_ceil(PANEL);
        let bytes = 2 * plan.unit_len;
        let heavy = weights.data.len() * size_of::<f32>();
        // Threads share out the pixels, or the weights where those are more to read.
        let chunks = if heavy > units * bytes && units * bytes <= 2 * TASK && panels >= 2 * threads() {
            1
        } else {
            let most = if heavy <= FEW_WEIGHTS { TASK / 4 } else { TASK };
            units.div_ceil((most / bytes).max(1)).max(threads().min(units))
        };
        let groups = (2 * threads()).div_ceil(chunks).clamp(1, panels);
        tasks(chunks * groups, |task| {
            let units = part(units, chunks, task / groups, 1);
            let panels = part(panels, groups, task % groups, 1);
            // The last tile may extend past the rows: what it reads there is discarded.
            let over = 2 * ROWS * plan.step + VALUES;
            let mut values = Buffer::new((units.len() * plan.unit_len + over).div_ceil(2));
            // SAFETY: `is_available` has asked the processor and the system.
            unsafe {
                plan.gather(units.clone(), &mut values);
                plan.multiply(units, panels, &values, out);
            }
        });
    }

    impl Plan<'_> {
        /// Whether outputs read other pixels than their own.
        fn taps_move(&self) -> bool {
            self.input[1] != 1 || self.product.stride != [1, 1] || self.taps.len() != 1
        }

        /// Rounds what units read.
        ///
        /// # Safety
        /// The processor must have AVX512-BF16.
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        unsafe fn gather(&self, units: Range<usize>, values: &mut [f32]) {
            let Product { x, pitch: x_pitch, stride, .. } = *self.product;
            let k = self.product.weights.k;
            let filled = k.next_multiple_of(VALUES);
            let len = 2 * values.len();
            let values = values.as_mut_ptr().cast::<u16>();
            // Values of the input from `start` on, and zeros up to a number of values.
            let copy = |start: usize, count: usize, filled: usize, to: usize| {
                check!(to + filled.max(count.next_multiple_of(2)) <= len);
                let to = values.wrapping_add(to);
                // SAFETY: inside the buffer, at a position of these values alone.
                unsafe {
                    let written = match x {
                        Values::F32(x) => {
                            round_into(&x[start..start + count], to);
                            count.next_multiple_of(2)
                        }
                        Values::Bf16(x) => {
                            to.copy_from_nonoverlapping(x[start..start + count].as_ptr().cast(), count);
                            count
                        }
                    };
                    if filled > written {
                        to.wrapping_add(written).write_bytes(0, filled - written);
                    }
                }
            };
            for (index, unit) in units.enumerate() {
                let (image, outputs) = self.rows(unit);
                let base = index * self.unit_len;
                let [height, width] = self.input;
                match &self.layout {
                    // Pixels as they lie.
                    Layout::Planes { pitch, .. }
                        if self.columns == 1 && *pitch == k && k == x_pitch && !self.taps_move() =>
                    {
                        copy((image * height + outputs.start) * k, outputs.len() * k, 0, base);
                    }
                    Layout::Planes { firsts, rows, more_rows, pitch } => {
                        for (plane, first) in firsts.iter().enumerate() {
                            for row in 0..outputs.len() + more_rows {
                                let down = ((outputs.start + row) * stride[0]) as isize + first[0];
                                let to = base + (plane * rows + row) * self.columns * pitch;
                                for column in 0..self.columns {
                                    let (to, right) = (to + column * pitch, (column * stride[1]) as isize + first[1]);
                                    if (down as usize) < height && (right as usize) < width {
                                        let pixel = (image * height + down as usize) * width + right as usize;
                                        copy(pixel * x_pitch, k, filled, to);
                                    } else {
                                        copy(0, 0, filled, to);
                                    }
                                }
                            }
                        }
                    }
                    Layout::Rows { more_rows } => {
                        let (first, count) =
                            (outputs.start * stride[0], (outputs.len() - 1) * stride[0] + 1 + more_rows);
                        let row = width * x_pitch;
                        // What the last sum reads too much is multiplied by zero, so it must be a number.
                        copy((image * height + first) * row, count * row, count * row + VALUES, base);
                    }
                }
            }
        }

        /// Computes the outputs of units in some panels.
        ///
        /// # Safety
        /// The processor must have AMX, the process leave to use it, `values` be those of the units, and no other task
        /// write these outputs.
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        unsafe fn multiply(&self, units: Range<usize>, panels: Range<usize>, values: &[f32], out: Outputs<'_>) {
            let product = self.product;
            let weights = product.weights;
            let [_, height, width] = self.output;
            let steps = weights.k.div_ceil(VALUES);
            let mut sums = Sums([[0.0; PANEL]; 2 * ROWS]);
            // SAFETY: AMX is there.
            unsafe { configure() };
            for panel in panels {
                let channel = panel * PANEL;
                let count = PANEL.min(weights.channels - channel);
                let epilogue = PanelEpilogue::new(product, channel, count);
                for (index, unit) in units.clone().enumerate() {
                    let (image, rows) = self.rows(unit);
                    // Up to the last output of the last row.
                    let (runs, outputs) = match self.run_step {
                        Some(_) => (rows.len(), width),
                        None => (1, rows.len() * self.columns - (self.columns - width)),
                    };
                    for run in 0..runs {
                        let base = index * self.unit_len + run * self.run_step.unwrap_or(0);
                        let (mut start, mut row, mut column) = (0, rows.start + run, 0);
                        while start < outputs {
                            let tiles = if outputs - start > ROWS { 2 } else { 1 };
                            let these = (outputs - start).min(tiles * ROWS);
                            let mut positions = [NOWHERE; 2 * ROWS];
                            for position in &mut positions[..these] {
                                if column < width {
                                    *position = ((image * height + row) * width + column) * weights.channels + channel;
                                }
                                column += 1;
                                if column == self.columns {
                                    (column, row) = (0, row + 1);
                                }
                            }
                            let jobs = self.taps.iter().map(|&[offset, tap]| {
                                let from = base + offset + start * self.step;
                                check!(from + (tiles * ROWS - 1) * self.step + steps * VALUES <= 2 * values.len());
                                let at = (panel * weights.taps + tap) * weights.pairs * PANEL;
                                check!(at + steps * VALUES / 2 * PANEL <= weights.data.len());
                                let left = values.as_ptr().cast::<u16>().wrapping_add(from);
                                (left, weights.data.as_ptr().wrapping_add(at))
                            });
                            // SAFETY: whole tiles inside the values and the panel, as was checked.
                            unsafe {
                                match (tiles, count > LANES) {
                                    (2, true) => products::<2, 2>(jobs, self.step, steps, &mut sums),
                                    (2, false) => products::<2, 1>(jobs, self.step, steps, &mut sums),
                                    (_, true) => products::<1, 2>(jobs, self.step, steps, &mut sums),
                                    (_, false) => products::<1, 1>(jobs, self.step, steps, &mut sums),
                                }
                                epilogue.write(&sums, &positions, out);
                            }
                            start += these;
                        }
                    }
                }
            }
            // SAFETY: nothing is in the tiles any more.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }

    /// The position of a discarded output.
    const NOWHERE: usize = usize::MAX;
    /// The prefetch distance of outputs, in outputs.
    const AHEAD: usize = 2 * ROWS;

    /// Sums of up to four tiles.
    #[repr(align(64))]
    struct Sums([[f32; PANEL]; 2 * ROWS]);

    /// All eight tiles have 16 rows of 64 bytes.
    ///
    /// # Safety
    /// The processor must have AMX, and the process leave to use it.
    #[inline(always)]
    unsafe fn configure() {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..8].fill(ROWS as u8);
        // SAFETY: the processor has AMX, and `ldtilecfg` reads the 64 bytes of the configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
    }

    /// `M × N` tiles of sums over all `jobs`, each `steps` tiles long: a tap's left operand, its rows `step` values apart,
    /// and its panel of weights.
    ///
    /// # Safety
    /// AMX must be configured, and each operand be good for reading.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn products<const M: usize, const N: usize>(
        jobs: impl Iterator<Item = (*const u16, *const f32)>,
        step: usize,
        steps: usize,
        sums: &mut Sums,
    ) {
        // Tiles 0 to 3 are sums, 4 and 5 the left operand's, 6 and 7 the weights'. No compiler uses them.
        // SAFETY: the tiles are configured, each job's operands have `M` and `N` tiles in each of `steps` steps, and `sums` has four.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            for (left, panel) in jobs {
                macro_rules! run {
                    ($($instruction:literal),*) => {
                        asm!(
                            "2:",
                            $($instruction,)*
                            "add {first}, 64",
                            "add {second}, 64",
                            "add {panel}, 2048",
                            "dec {steps}",
                            "jnz 2b",
                            first = inout(reg) left => _,
                            second = inout(reg) left.wrapping_add(ROWS * step) => _,
                            panel = inout(reg) panel => _,
                            steps = inout(reg) steps => _,
                            left_step = in(reg) 2 * step,
                            panel_step = in(reg) PANEL * size_of::<f32>(),
                            options(nostack, readonly)
                        )
                    };
                }
                match (M, N) {
                    (2, 2) => run!(
                        "tileloadd tmm6, [{panel} + {panel_step}]",
                        "tileloadd tmm4, [{first} + {left_step}]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{panel} + {panel_step} + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tileloadd tmm5, [{second} + {left_step}]",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7"
                    ),
                    (2, _) => run!(
                        "tileloadd tmm6, [{panel} + {panel_step}]",
                        "tileloadd tmm4, [{first} + {left_step}]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{second} + {left_step}]",
                        "tdpbf16ps tmm2, tmm5, tmm6"
                    ),
                    (_, 2) => run!(
                        "tileloadd tmm6, [{panel} + {panel_step}]",
                        "tileloadd tmm4, [{first} + {left_step}]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{panel} + {panel_step} + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7"
                    ),
                    _ => run!(
                        "tileloadd tmm6, [{panel} + {panel_step}]",
                        "tileloadd tmm4, [{first} + {left_step}]",
                        "tdpbf16ps tmm0, tmm4, tmm6"
                    ),
                }
            }
            let to = sums.0.as_mut_ptr();
            asm!(
                "tilestored [{to} + {step}], tmm0",
                "tilestored [{to} + {step} + 64], tmm1",
                "tilestored [{below} + {step}], tmm2",
                "tilestored [{below} + {step} + 64], tmm3",
                to = in(reg) to,
                below = in(reg) to.wrapping_add(ROWS),
                step = in(reg) PANEL * size_of::<f32>(),
                options(nostack)
            );
        }
    }

    /// Where tasks write outputs.
    #[derive(Clone, Copy)]
    enum Outputs<'a> {
        F32(DisjointSlice<'a, f32>),
        Bf16(DisjointSlice<'a, bf16>),
    }

    /// The epilogue of the channels of a panel: scale, bias, residual and ReLU.
    struct PanelEpilogue<'a> {
        scale: [__m512; 2],
        bias: [__m512; 2],
        masks: [__mmask16; 2],
        residual: Option<Values<'a>>,
        relu: bool,
        /// Channels of the panel, and of the output.
        count: usize,
        channels: usize,
    }

    impl<'a> PanelEpilogue<'a> {
        #[target_feature(enable = "avx512f")]
        fn new(product: &Product<'a>, channel: usize, count: usize) -> Self {
            let masks = [0, LANES].map(|first| ((1u32 << count.saturating_sub(first).min(LANES)) - 1) as __mmask16);
            let load = |values: Option<&[f32]>, default: f32, n: usize| match values {
                // SAFETY: as many floats as the slice has.
                Some(values) => unsafe {
                    let values = &values[channel..channel + count];
                    _mm512_maskz_loadu_ps(masks[n], values.as_ptr().wrapping_add(n * LANES))
                },
                None => _mm512_set1_ps(default),
            };
            let scale = [load(product.scale, 1.0, 0), load(product.scale, 1.0, 1)];
            let bias = [load(product.bias, 0.0, 0), load(product.bias, 0.0, 1)];
            Self {
                scale,
                bias,
                masks,
                residual: product.residual,
                relu: product.relu,
                count,
                channels: product.weights.channels,
            }
        }

        /// Applies the epilogue to the accumulators and writes those that have an output.
        ///
        /// # Safety
        /// No other task may write there.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn write(&self, sums: &Sums, positions: &[usize; 2 * ROWS], out: Outputs<'_>) {
            for (sums, &position) in sums.0.iter().zip(positions) {
                if position == NOWHERE {
                    continue;
                }
                self.prefetch(position + AHEAD * self.channels, out);
                for n in 0..self.count.div_ceil(LANES) {
                    let (at, mask) = (position + n * LANES, self.masks[n]);
                    let end = position + self.count.min((n + 1) * LANES);
                    // SAFETY: `mask` leaves the values of slices and of what is this task's alone.
                    unsafe {
                        let sums = _mm512_load_ps(sums.as_ptr().add(n * LANES));
                        let mut value = _mm512_fmadd_ps(sums, self.scale[n], self.bias[n]);
                        match self.residual {
                            None => (),
                            Some(Values::F32(residual)) => {
                                check!(end <= residual.len());
                                let residual = _mm512_maskz_loadu_ps(mask, residual.as_ptr().wrapping_add(at));
                                value = _mm512_add_ps(value, residual);
                            }
                            Some(Values::Bf16(residual)) => {
                                check!(end <= residual.len());
                                let bits = _mm256_maskz_loadu_epi16(mask, residual.as_ptr().wrapping_add(at).cast());
                                let bits = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits));
                                value = _mm512_add_ps(value, _mm512_castsi512_ps(bits));
                            }
                        }
                        if self.relu {
                            // `max` with its operands in this order propagates NaN.
                            value = _mm512_max_ps(_mm512_setzero_ps(), value);
                        }
                        match out {
                            Outputs::F32(out) => {
                                _mm512_mask_storeu_ps(out.at(at, end - at), mask, value);
                            }
                            Outputs::Bf16(out) => {
                                let bits: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(value));
                                _mm256_mask_storeu_epi16(out.at(at, end - at).cast(), mask, bits);
                            }
                        }
                    }
                }
            }
        }

        /// Prefetches the cache lines of an output and its residual, where they are within bounds.
        #[inline(always)]
        fn prefetch(&self, at: usize, out: Outputs<'_>) {
            match out {
                Outputs::F32(out) => {
                    if at + self.count <= out.len() {
                        tile::prefetch_for_writing(out.at(at, 0), self.count);
                    }
                }
                Outputs::Bf16(out) => {
                    if at + self.count <= out.len() {
                        tile::prefetch_for_writing(out.at(at, 0).cast_const().cast(), self.count.div_ceil(2));
                    }
                }
            }
            match self.residual {
                None => (),
                Some(Values::F32(residual)) => tile::prefetch(residual.as_ptr().wrapping_add(at), self.count),
                Some(Values::Bf16(residual)) => {
                    tile::prefetch(residual.as_ptr().wrapping_add(at).cast(), self.count.div_ceil(2));
                }
            }
        }
    }
}
