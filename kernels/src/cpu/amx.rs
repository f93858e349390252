//! Products of bf16 values by AMX: tiles of 16 rows × 32 values, two of which the processor multiplies in one instruction,
//! sixteen times as many products as an instruction of [`super::half`] has.
//!
//! A tile is read with one step between its rows. So each task first rounds the pixels that it reads into planes, one for
//! each remainder of their places by the stride, with the zeros of the padding: outputs in a row, and the rows after one
//! another, then read pixels that are one step apart, whatever the kernel and the stride. The few outputs between the end of
//! a row and the start of the next are computed and thrown away.

/// Whether this processor and this system have AMX for bf16.
pub fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
    {
        static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *AVAILABLE.get_or_init(imp::ask)
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
pub(super) use imp::run;

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod imp {
    use std::{arch::asm, arch::x86_64::*, ops::Range};

    use crate::cpu::{
        conv::{Epilogue, Product, Tap},
        half::{self, LANES, PANEL, Packed, round_into},
        memory::Buffer,
        parallel::{Shared, part, tasks, threads},
        tile,
    };

    /// Rows of a tile.
    const ROWS: usize = 16;
    /// Values in a row of a tile.
    const VALUES: usize = 32;
    /// Rounded pixels (bytes) of a unit of work, and of a task that goes over them again for each panel of weights: they
    /// should stay in a core's second cache.
    const UNIT: usize = 192 << 10;
    const TASK: usize = 512 << 10;
    /// Weights (bytes) that stay in that cache beside them, so that tasks can be small.
    const FEW_WEIGHTS: usize = 256 << 10;

    /// Asks the processor, and the system for leave to use the tiles' registers.
    pub fn ask() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        let has =
            half::is_available() && __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES;
        // SAFETY: the call changes nothing but what the process may do.
        has && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    /// How the work is laid out; lengths and offsets count bf16 values.
    struct Plan<'a> {
        product: &'a Product<'a, Packed>,
        /// Images, rows and columns of the output.
        output: [usize; 3],
        /// Rows and columns of an image of the input.
        input: [usize; 2],
        layout: Layout,
        /// From an output to the next.
        step: usize,
        /// Outputs from row to row, those that are thrown away among them.
        columns: usize,
        /// For each tap where an output's first one reads, and its place in the weights.
        taps: Vec<[usize; 2]>,
        /// Units of an image, each some rows of the output.
        strips: usize,
        unit_len: usize,
    }

    enum Layout {
        /// Each the pixels at some places by the stride, from these of the input on.
        Planes { firsts: Vec<[isize; 2]>, rows: usize, more_rows: usize, pitch: usize },
        /// For each output what each tap reads, side by side.
        Gathered,
    }

    /// Values from pixel to pixel, so that the rows of a tile do not fall on the same few sets of the first cache.
    fn pitch_of(k: usize) -> usize {
        let pitch = k.next_multiple_of(VALUES);
        if pitch.is_multiple_of(512) { pitch + VALUES } else { pitch }
    }

    /// The rows of a strip; where each is one output, as many as whole tiles have.
    fn strip([height, width]: [usize; 2], strips: usize, index: usize) -> Range<usize> {
        part(height, strips, index, if width == 1 { 2 * ROWS } else { 1 })
    }

    impl<'a> Plan<'a> {
        fn new(product: &'a Product<'a, Packed>) -> Self {
            let [mut height, mut width] = product.lattice.count;
            let (mut n, mut input) = (product.n, product.x.size);
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
            // A pixel of a map with few channels is read as part of a row, at any offset.
            if k > product.x.pitch {
                let pitch = k.next_multiple_of(VALUES);
                let step = product.taps.len() * pitch;
                let strips = strips_of(width * step, 0);
                return Self {
                    product,
                    output: [n, height, width],
                    input,
                    layout: Layout::Gathered,
                    step,
                    columns: width,
                    taps: product.taps.iter().enumerate().map(|(i, tap)| [i * pitch, tap.index]).collect(),
                    strips,
                    unit_len: longest(strips) * width * step,
                };
            }
            let pitch = pitch_of(k);
            let [down, right] =
                [|tap: &Tap| tap.down, |tap: &Tap| tap.right].map(|of| product.taps.iter().map(of).min().unwrap_or(0));
            let stride = product.stride;
            let mut firsts: Vec<[isize; 2]> = Vec::new();
            // For each tap its plane, and how far from the plane's first pixel.
            let places: Vec<[usize; 3]> = product
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
                [1, 2].map(|axis| places.iter().map(|place| place[axis]).max().unwrap_or(0));
            let columns = width + more_columns;
            let strips = strips_of(firsts.len() * columns * pitch, more_rows);
            let rows = longest(strips) + more_rows;
            let plane = rows * columns * pitch;
            let taps = places.iter().zip(product.taps);
            Self {
                product,
                output: [n, height, width],
                input,
                step: pitch,
                columns,
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
    pub fn run(product: &Product<'_, Packed>, out: &mut [f32]) {
        let weights = product.weights;
        let lattice = &product.lattice;
        assert!(lattice.size == lattice.count && lattice.step == [1, 1], "only whole outputs");
        if product.n * lattice.count[0] * lattice.count[1] == 0 || weights.channels == 0 {
            return;
        }
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
        let out = Shared::new(out);
        tasks(chunks * groups, |task| {
            let units = part(units, chunks, task / groups, 1);
            let panels = part(panels, groups, task % groups, 1);
            // The last tile may hang over: what it reads there goes nowhere.
            let mut values = Buffer::new((units.len() * plan.unit_len + 2 * ROWS * plan.step) / 2);
            // SAFETY: `is_available` has asked the processor and the system.
            unsafe {
                plan.gather(units.clone(), &mut values);
                plan.multiply(units, panels, &values, out);
            }
        });
    }

    impl Plan<'_> {
        /// Rounds what units read.
        ///
        /// # Safety
        /// The processor must have AVX512-BF16.
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        unsafe fn gather(&self, units: Range<usize>, values: &mut [f32]) {
            let (x, k, stride) = (&self.product.x, self.product.weights.k, self.product.stride);
            let [_, _, width] = self.output;
            let filled = k.next_multiple_of(VALUES);
            let len = 2 * values.len();
            let values = values.as_mut_ptr().cast::<u16>();
            // A pixel at a place of the input, or zeros, and zeros up to a whole row of a tile.
            let copy = |image: usize, [down, right]: [isize; 2], to: usize| {
                check!(to + filled <= len);
                let [height, width] = self.input;
                let to = values.wrapping_add(to);
                let inside = (down as usize) < height && (right as usize) < width;
                // SAFETY: the pixel's or the tap's own place in the buffer.
                unsafe {
                    if inside {
                        let start = ((image * height + down as usize) * width + right as usize) * x.pitch + x.offset;
                        round_into(&x.data[start..start + k], to);
                    }
                    let written = if inside { k.next_multiple_of(2) } else { 0 };
                    to.wrapping_add(written).write_bytes(0, filled - written);
                }
            };
            for (index, unit) in units.enumerate() {
                let (image, outputs) = self.rows(unit);
                let base = index * self.unit_len;
                match &self.layout {
                    Layout::Planes { firsts, rows, more_rows, pitch } => {
                        for (plane, first) in firsts.iter().enumerate() {
                            for row in 0..outputs.len() + more_rows {
                                let down = ((outputs.start + row) * stride[0]) as isize + first[0];
                                let to = base + (plane * rows + row) * self.columns * pitch;
                                for column in 0..self.columns {
                                    let right = (column * stride[1]) as isize + first[1];
                                    copy(image, [down, right], to + column * pitch);
                                }
                            }
                        }
                    }
                    Layout::Gathered => {
                        for (row, y) in outputs.enumerate() {
                            for column in 0..width {
                                let to = base + (row * width + column) * self.step;
                                for (tap, [offset, _]) in self.product.taps.iter().zip(&self.taps) {
                                    let down = (y * stride[0]) as isize + tap.down;
                                    let right = (column * stride[1]) as isize + tap.right;
                                    copy(image, [down, right], to + offset);
                                }
                            }
                        }
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
        unsafe fn multiply(&self, units: Range<usize>, panels: Range<usize>, values: &[f32], out: Shared<'_, f32>) {
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
                let finish = Finish::new(&product.epilogue, product.out_offset + channel, count);
                for (index, unit) in units.clone().enumerate() {
                    let (image, rows) = self.rows(unit);
                    // Up to the last output of the last row.
                    let outputs = rows.len() * self.columns - (self.columns - width);
                    let mut start = 0;
                    while start < outputs {
                        let tiles = if outputs - start > ROWS { 2 } else { 1 };
                        let these = (outputs - start).min(tiles * ROWS);
                        let mut places = [None; 2 * ROWS];
                        for (i, place) in places[..these].iter_mut().enumerate() {
                            let (row, column) = ((start + i) / self.columns, (start + i) % self.columns);
                            if column < width {
                                let pixel = (image * height + rows.start + row) * width + column;
                                let at = pixel * product.out_pitch + product.out_offset + channel;
                                tile::prefetch_for_writing(out.at(at), count);
                                if let Some(residual) = product.epilogue.residual {
                                    tile::prefetch(residual.as_ptr().wrapping_add(at), count);
                                }
                                *place = Some(at);
                            }
                        }
                        let jobs = self.taps.iter().map(|&[offset, tap]| {
                            let from = index * self.unit_len + offset + start * self.step;
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
                            for (sums, place) in sums.0.iter().zip(places) {
                                if let Some(at) = place {
                                    finish.write(sums, at, out);
                                }
                            }
                        }
                        start += these;
                    }
                }
            }
            // SAFETY: nothing is in the tiles any more.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }

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
        // SAFETY: the caller's promise; 64 bytes are read.
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
        // SAFETY: the caller's promise.
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

    /// The end of a sum, for the channels of a panel.
    struct Finish<'a> {
        scale: [__m512; 2],
        bias: [__m512; 2],
        masks: [__mmask16; 2],
        residual: Option<&'a [f32]>,
        relu: bool,
        count: usize,
    }

    impl<'a> Finish<'a> {
        #[target_feature(enable = "avx512f")]
        fn new(epilogue: &Epilogue<'a>, channel: usize, count: usize) -> Self {
            let masks = [0, LANES].map(|first| ((1u32 << count.saturating_sub(first).min(LANES)) - 1) as __mmask16);
            let load = |values: Option<&[f32]>, default: f32, n: usize| match values {
                // SAFETY: as many floats as the slice has.
                Some(values) => unsafe {
                    let values = &values[channel..channel + count];
                    _mm512_maskz_loadu_ps(masks[n], values.as_ptr().wrapping_add(n * LANES))
                },
                None => _mm512_set1_ps(default),
            };
            let scale = [load(epilogue.scale, 1.0, 0), load(epilogue.scale, 1.0, 1)];
            let bias = [load(epilogue.bias, 0.0, 0), load(epilogue.bias, 0.0, 1)];
            Self { scale, bias, masks, residual: epilogue.residual, relu: epilogue.relu, count }
        }

        /// # Safety
        /// `at` must be the place of an output that no other task writes.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn write(&self, sums: &[f32; PANEL], at: usize, out: Shared<'_, f32>) {
            for n in 0..self.count.div_ceil(LANES) {
                let (at, mask) = (at + n * LANES, self.masks[n]);
                // SAFETY: `mask` leaves the floats of slices and of what is this task's alone.
                unsafe {
                    let sums = _mm512_loadu_ps(sums.as_ptr().add(n * LANES));
                    let mut value = _mm512_fmadd_ps(sums, self.scale[n], self.bias[n]);
                    if let Some(residual) = self.residual {
                        check!(at + LANES.min(self.count - n * LANES) <= residual.len());
                        let residual = _mm512_maskz_loadu_ps(mask, residual.as_ptr().wrapping_add(at));
                        value = _mm512_add_ps(value, residual);
                    }
                    if self.relu {
                        // In this order what is not a number stays so.
                        value = _mm512_max_ps(_mm512_setzero_ps(), value);
                    }
                    _mm512_mask_storeu_ps(out.at(at), mask, value);
                }
            }
        }
    }
}
