//! Images decoded on threads, delivered in order and in batches, with a bounded number in flight.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

use image::RgbImage;

use hub::Preprocessor;

use crate::{Error, Input, Result};

/// The number of decoded images that may wait at each thread.
const WAITING: usize = 8;

/// Reads, decodes, resizes and crops `inputs` on `threads` threads, and calls `consume` with up to `batch_size` of them
/// at a time, in order, each with its image or its error.
///
/// Memory holds at most one batch, eight images of the input size per thread, and the image that each thread decodes.
/// The threads continue while `consume` runs.
///
/// # Errors
/// Fails if `consume` returns an error, which stops the work and is returned as it is.
pub fn batches<'a, E: From<Error>>(
    inputs: &'a [Input],
    preprocess: &Preprocessor,
    batch_size: usize,
    threads: usize,
    mut consume: impl FnMut(Vec<(&'a Input, Result<RgbImage>)>) -> Result<(), E>,
) -> Result<(), E> {
    let threads = threads.clamp(1, inputs.len().max(1));
    thread::scope(|scope| {
        // Thread t has the inputs t, t + threads, …, so taking from each in turn restores the order.
        let start = |first: usize| {
            let (sender, receiver) = sync_channel(WAITING);
            scope.spawn(move || {
                for input in inputs.iter().skip(first).step_by(threads) {
                    if sender.send(decode(input, preprocess)).is_err() {
                        return; // The consumer has ended.
                    }
                }
            });
            receiver
        };
        let receivers: Vec<Receiver<Result<RgbImage>>> = (0..threads).map(start).collect();
        for (number, chunk) in inputs.chunks(batch_size.max(1)).enumerate() {
            let mut batch = Vec::with_capacity(chunk.len());
            for (position, input) in chunk.iter().enumerate() {
                let receiver = &receivers[(number * batch_size.max(1) + position) % threads];
                batch.push((input, receiver.recv().map_err(|_| Error::Bug("a decoding thread ended early"))?));
            }
            consume(batch)?;
        }
        Ok(())
    })
}

fn decode(input: &Input, preprocess: &Preprocessor) -> Result<RgbImage> {
    let decoded = preprocess.decode(&input.read()?)?;
    if let Some(damage) = decoded.damage {
        log::warn!("{}: {damage}; it is used as far as it can be decoded", input.name());
    }
    Ok(decoded.image)
}

#[cfg(test)]
mod tests {
    use hub::Card;
    use models::Architecture;

    use super::*;

    #[test]
    fn images_and_errors_keep_their_order_for_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let preprocess = Preprocessor::new(&Card::of(Architecture::ResNet20, 10, "a test")).unwrap();
        let inputs: Vec<Input> = (0..23u8)
            .map(|i| {
                let path = folder.path().join(format!("{i}.png"));
                if i % 5 == 3 {
                    std::fs::write(&path, "no image").unwrap();
                } else {
                    RgbImage::from_pixel(32, 32, image::Rgb([i, i, i])).save(&path).unwrap();
                }
                Input::File(path)
            })
            .collect();
        for (threads, batch_size) in [(1, 1), (2, 4), (3, 23), (40, 7)] {
            let mut seen = Vec::new();
            batches(&inputs, &preprocess, batch_size, threads, |batch| -> Result<()> {
                assert!(batch.len() <= batch_size);
                seen.extend(batch.iter().map(|(_, image)| image.as_ref().ok().map(|image| image.get_pixel(0, 0).0[0])));
                Ok(())
            })
            .unwrap();
            let expected: Vec<_> = (0..23).map(|i| (i % 5 != 3).then_some(i)).collect();
            assert_eq!(seen, expected, "{threads} threads, batches of {batch_size}");
        }
        let error = batches(&inputs, &preprocess, 2, 2, |_| Err(Error::Unusable("enough".into()))).unwrap_err();
        assert_eq!(error.to_string(), "enough");
    }
}
