//! The scans of a progressive image (T.81 annex G): coefficients gathered by frequency and by bit.

use super::{
    Damages, Frame, Result, ScanComponent, Tables, ZIGZAG, broken,
    entropy::{Bits, Huffman, Segments},
};
use crate::decode::DecodeOptions;

/// Reads one scan into the frame's coefficients. `first..=last` are zigzag positions; `approximation` holds the bits
/// that were known before (high half) and those still unknown after (low half).
#[allow(clippy::too_many_arguments, reason = "a scan has these parameters")]
pub(super) fn scan(
    frame: &mut Frame,
    scan: &[ScanComponent],
    (first, last, approximation): (u8, u8, u8),
    tables: &Tables,
    segments: &Segments,
    damages: &mut Damages,
    options: &DecodeOptions,
) -> Result<()> {
    let (refine, low) = (approximation >> 4 != 0, u32::from(approximation & 15));
    let alone = scan.len() == 1;
    if last > 63 || first > last || (first == 0) != (last == 0) || (first > 0 && !alone) || low > 13 {
        return Err(broken("impossible parameters of a progressive scan"));
    }
    let mcus = if alone { frame.components[scan[0].index].blocks } else { frame.mcus() };
    let interval = tables.restart_interval;
    let mut predictions = [0i32; 4];
    let mut end_run = 0;
    let (mut pieces, mut bits) = segments.pieces();
    // The current piece has ended before its blocks.
    let mut starved = false;
    for mcu in 0..mcus.0 * mcus.1 {
        let (mcu_x, mcu_y) = (mcu % mcus.0, mcu / mcus.0);
        if mcu_x == 0 {
            options.check_cancel()?;
        }
        if interval > 0 && mcu > 0 && mcu % interval == 0 {
            damages.codes(&bits);
            let (next, in_order) = pieces.restart();
            damages.restart(in_order);
            starved &= next.is_none();
            bits = next.unwrap_or(Bits::empty());
            predictions = [0; 4];
            end_run = 0;
        }
        if starved {
            if interval == 0 {
                break;
            }
            continue;
        }
        for (part, prediction) in scan.iter().zip(&mut predictions) {
            let component = &mut frame.components[part.index];
            let (h, v) = if alone { (1, 1) } else { (component.h, component.v) };
            for block in 0..h * v {
                let (column, row) = (mcu_x * h + block % h, mcu_y * v + block / h);
                let block = &mut component.coefficients[row * component.coefficient_stride + column];
                let missing = || broken("a missing Huffman table");
                match (first, refine) {
                    (0, false) => {
                        let table = tables.dc[part.dc].as_ref().ok_or_else(missing)?;
                        *prediction = prediction.wrapping_add(bits.slow_difference(table));
                        block[0] = (*prediction << low) as i16;
                    }
                    (0, true) => block[0] |= (bits.bit() as i16) << low,
                    (_, false) => {
                        let table = tables.ac[part.ac].as_ref().ok_or_else(missing)?;
                        first_bits(&mut bits, table, first.into()..=last.into(), low, &mut end_run, block);
                    }
                    (_, true) => {
                        let table = tables.ac[part.ac].as_ref().ok_or_else(missing)?;
                        refining_bits(&mut bits, table, first.into()..=last.into(), low, &mut end_run, block);
                    }
                }
            }
        }
        if bits.overrun() {
            damages.ends_early(&pieces)?;
            starved = true;
        }
    }
    damages.codes(&bits);
    Ok(())
}

type Band = std::ops::RangeInclusive<usize>;

/// The first scan of a band of AC coefficients.
fn first_bits(bits: &mut Bits<'_>, table: &Huffman, band: Band, low: u32, end_run: &mut u32, block: &mut [i16; 64]) {
    if *end_run > 0 {
        *end_run -= 1;
        return;
    }
    let mut at = *band.start();
    while at <= *band.end() {
        bits.refill();
        let symbol = bits.symbol(table);
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run < 15 {
                *end_run = (1 << run) - 1 + bits.take(run);
                break;
            }
            at += 16;
        } else {
            at += run as usize;
            let value = bits.value(size);
            // Only damage puts a value beyond the end; libjpeg stores it at the end.
            block[usize::from(ZIGZAG[at.min(63)])] = (value << low) as i16;
            at += 1;
        }
    }
}

/// A later scan of a band: one more bit of the coefficients that are not zero, and new ones of magnitude 1.
fn refining_bits(bits: &mut Bits<'_>, table: &Huffman, band: Band, low: u32, end_run: &mut u32, block: &mut [i16; 64]) {
    let one = 1i16 << low;
    let refine = |bits: &mut Bits<'_>, value: &mut i16| {
        if bits.bit() == 1 && *value & one == 0 {
            *value = value.wrapping_add(if *value < 0 { -one } else { one });
        }
    };
    let mut at = *band.start();
    if *end_run == 0 {
        while at <= *band.end() {
            bits.refill();
            let symbol = bits.symbol(table);
            let mut zeros = symbol >> 4;
            let new = match symbol & 15 {
                0 if zeros < 15 => {
                    *end_run = (1 << zeros) + bits.take(u32::from(zeros));
                    break;
                }
                0 => 0,
                _ if bits.bit() == 1 => one,
                _ => -one,
            };
            while at <= *band.end() {
                let value = &mut block[usize::from(ZIGZAG[at])];
                if *value != 0 {
                    refine(bits, value);
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                at += 1;
            }
            // Only damage puts a value behind the band; libjpeg stores it there.
            if new != 0 {
                block[usize::from(ZIGZAG[at.min(63)])] = new;
            }
            at += 1;
        }
    }
    if *end_run > 0 {
        for position in at..=*band.end() {
            let value = &mut block[usize::from(ZIGZAG[position])];
            if *value != 0 {
                refine(bits, value);
            }
        }
        *end_run -= 1;
    }
}
