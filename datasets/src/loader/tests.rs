use std::{
    collections::HashSet,
    sync::{atomic::Ordering::Relaxed, mpsc},
    time::Duration,
};

use super::{
    testing::{Counting, Paint},
    *,
};

fn builder(source: Counting) -> LoaderBuilder {
    ImageLoader::builder(Arc::new(source), Arc::new(Paint::default())).batch_size(4).workers(2)
}

fn epoch(loader: &ImageLoader) -> Vec<ImageBatch> {
    loader.batches().collect::<Result<_>>().unwrap()
}

/// Fails instead of hanging.
fn within_seconds<T: Send + 'static>(seconds: u64, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let worker = std::thread::spawn(move || sender.send(work()));
    match receiver.recv_timeout(Duration::from_secs(seconds)) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("still running after {seconds} s"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Err(payload) => std::panic::resume_unwind(payload),
            Ok(_) => panic!("ended without a result"),
        },
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[test]
fn batches_are_the_same_with_any_number_of_workers() {
    for order in [Order::Sequential, Order::Shuffled, Order::Windowed { run: 8, window: 24 }] {
        let load = |workers| {
            let loader = builder(Counting::new(103)).order(order).seed(7).workers(workers).build().unwrap();
            [epoch(&loader), epoch(&loader)]
        };
        let [first, second] = load(0);
        assert_eq!(first.len(), 26);
        assert_eq!(first[25].shape, [3, 3, 2, 3]);
        for workers in [1, 2, 16] {
            assert_eq!(load(workers), [first.clone(), second.clone()], "{order:?} with {workers} workers");
        }
        let colors = |batches: &[ImageBatch]| batches.iter().map(|batch| batch.images[6]).collect::<Vec<_>>();
        assert_ne!(colors(&first), colors(&second), "epochs differ in their random choices");
    }
}

#[test]
fn pixels_are_channels_first_and_belong_to_their_sample() {
    let loader = builder(Counting::new(6)).shuffle().build().unwrap();
    for batch in epoch(&loader) {
        assert_eq!(batch.shape, [batch.len(), 3, 2, 3]);
        for (image, &index) in batch.images.chunks_exact(18).zip(&batch.indices) {
            assert!(image[..6].iter().all(|&red| red as usize == index));
            assert!(image[6..12].iter().all(|&green| green == image[6]));
            assert_eq!(image[12..], [0, 1, 2, 10, 11, 12]);
        }
        let labels: Vec<_> = batch.indices.iter().map(|&index| index as u32 % 3).collect();
        assert_eq!(batch.labels, Some(labels));
    }
}

#[test]
fn starting_in_the_middle_gives_the_full_run_s_tail_and_reads_nothing_before() {
    let source = Arc::new(Counting::new(50));
    let build = || {
        let builder = ImageLoader::builder(source.clone(), Arc::new(Paint::default()));
        builder.batch_size(4).workers(2).shuffle().seed(3).build().unwrap()
    };
    let full = build();
    let _first = epoch(&full);
    let second = epoch(&full);
    let third = epoch(&full);

    source.reads.store(0, Relaxed);
    let resumed = build();
    resumed.start_at(1, 9).unwrap();
    assert_eq!(resumed.next_start(), (1, 9));
    assert_eq!(epoch(&resumed), second[9..]);
    assert_eq!(source.reads.load(Relaxed), 50 - 36);
    assert_eq!(epoch(&resumed), third);

    resumed.start_at(1, 13).unwrap();
    assert_eq!(resumed.next_start(), (2, 0), "one past the end is the next epoch");
    assert!(resumed.start_at(1, 14).unwrap_err().to_string().contains("batch 14 of an epoch of 13"));
}

#[test]
fn shares_have_equal_counts_and_together_hold_each_sample() {
    for (drop_last, batches, seen) in [(false, 7, 103), (true, 6, 96)] {
        let mut indices = Vec::new();
        for rank in 0..4 {
            let builder = builder(Counting::new(103)).shuffle().share(rank, 4).drop_last(drop_last);
            let share = epoch(&builder.build().unwrap());
            assert_eq!(share.len(), batches);
            indices.extend(share.into_iter().flat_map(|batch| batch.indices));
        }
        let distinct: HashSet<_> = indices.iter().collect();
        assert_eq!((indices.len(), distinct.len()), (if drop_last { 96 } else { 104 }, seen));
    }
}

/// Returns rows of images on the device with their targets, over all parts.
fn mixed(batches: &[ImageBatch]) -> Vec<(Vec<f32>, Vec<f32>)> {
    let device = Device::flex();
    let rows = |batch: &ImageBatch| -> Vec<(Vec<f32>, Vec<f32>)> {
        if batch.is_empty() {
            return Vec::new();
        }
        let images: Vec<f32> = batch.normalize([0.0; 3], [1.0; 3], &device).into_data().iter::<f32>().collect();
        let targets: Vec<f32> = batch.soft_targets(3, &device).into_data().iter::<f32>().collect();
        assert_eq!([images.len() / 18, targets.len() / 3], [batch.mixed_len(); 2]);
        images.chunks(18).zip(targets.chunks(3)).map(|(image, target)| (image.to_vec(), target.to_vec())).collect()
    };
    batches.iter().flat_map(rows).collect()
}

#[test]
fn parts_of_batches_are_the_batches_whatever_their_number() {
    use crate::transforms::batch::{BatchTransform, CutMix, Mixup};
    let both = vec![BatchTransform::Mixup(Mixup::default()), BatchTransform::CutMix(CutMix::default())];
    for mix in [Vec::new(), both] {
        for (drop_last, last) in [(false, 3), (true, 8)] {
            let build = |rank, ranks| {
                let builder = builder(Counting::new(43)).batch_size(8).shuffle().seed(5).drop_last(drop_last);
                builder.mix(BatchTransforms::new(mix.clone()).unwrap()).part_of_batches(rank, ranks).build().unwrap()
            };
            let whole = epoch(&build(0, 1));
            assert_eq!(whole.last().unwrap().len(), last);
            for ranks in [2, 3, 5, 8] {
                let parts: Vec<_> = (0..ranks).map(|rank| epoch(&build(rank, ranks))).collect();
                assert!(parts.iter().all(|part| part.len() == whole.len()), "every rank sees as many batches");
                for (number, batch) in whole.iter().enumerate() {
                    let of_parts: Vec<ImageBatch> = parts.iter().map(|part| part[number].clone()).collect();
                    assert!(of_parts.iter().all(|part| part.number == number));
                    let own: Vec<usize> =
                        of_parts.iter().flat_map(|part| part.indices[..part.mixed_len()].to_vec()).collect();
                    assert_eq!(own, batch.indices);
                    assert_eq!(mixed(&of_parts), mixed(std::slice::from_ref(batch)), "{ranks} parts of batch {number}");
                }
            }
        }
    }
}

#[test]
fn a_part_goes_on_in_the_middle_and_reads_its_own_alone() {
    let source = Arc::new(Counting::new(64));
    let builder = ImageLoader::builder(source.clone(), Arc::new(Paint::default())).batch_size(8).workers(2).shuffle();
    let loader = builder.part_of_batches(1, 4).build().unwrap();
    let full = epoch(&loader);
    assert_eq!(source.reads.swap(0, Relaxed), 16);
    loader.start_at(0, 5).unwrap();
    assert_eq!(epoch(&loader), full[5..]);
    assert_eq!(source.reads.load(Relaxed), 6);
}

#[test]
fn drop_last_drops_the_incomplete_batch_and_progress_ends_complete() {
    for (drop_last, count, items) in [(false, 3, 10), (true, 2, 8)] {
        let loader = builder(Counting::new(10)).drop_last(drop_last).build().unwrap();
        assert_eq!((loader.num_batches(), loader.num_items()), (count, items));
        let mut batches = loader.iter();
        let mut seen = 0;
        while let Some(batch) = batches.next() {
            seen += batch.unwrap().len();
            assert_eq!(batches.progress().items_processed, seen);
        }
        assert_eq!(seen, items);
        assert!(batches.progress().is_completed());
    }
}

#[test]
fn repeats_are_transformed_anew() {
    let loader = builder(Counting::new(16)).batch_size(8).shuffle().repeats(4).build().unwrap();
    for batch in epoch(&loader) {
        let copies =
            |index: usize| batch.indices.iter().zip(batch.images.chunks_exact(18)).filter(move |(i, _)| **i == index);
        assert_eq!(batch.indices.iter().collect::<HashSet<_>>().len(), 2);
        for &index in &batch.indices {
            let colors: HashSet<_> = copies(index).map(|(_, image)| image[6]).collect();
            assert!(copies(index).count() == 4 && colors.len() > 1, "{colors:?}");
        }
    }
}

#[test]
fn no_image_is_mixed_with_a_copy_of_itself() {
    use crate::transforms::batch::{BatchTransform, Mixup};
    for (samples, batch_size, repeats) in [(64, 8, 4), (50, 7, 4), (9, 4, 3), (33, 16, 2), (21, 5, 4)] {
        let mix = BatchTransforms::new(vec![BatchTransform::Mixup(Mixup::default())]).unwrap();
        let builder = builder(Counting::new(samples)).batch_size(batch_size).shuffle().repeats(repeats).mix(mix);
        for batch in epoch(&builder.build().unwrap()).iter().filter(|batch| batch.len() > 1) {
            let mix = batch.mix.as_ref().unwrap();
            for (index, &partner) in batch.indices.iter().zip(&mix.permutation) {
                assert_ne!(*index, batch.indices[partner as usize], "{samples} samples, batches of {batch_size}");
            }
        }
    }
}

#[test]
fn strict_stops_at_the_bad_sample_and_names_it() {
    for workers in [0, 1, 2, 16] {
        let loader = builder(Counting::new(40).broken_at(&[13])).workers(workers).build().unwrap();
        let results: Vec<_> = within_seconds(20, move || loader.batches().collect());
        assert_eq!(results.len(), 4, "three good batches, then the error, then the end");
        assert!(results[..3].iter().all(Result::is_ok));
        let message = results[3].as_ref().unwrap_err().to_string();
        assert!(message.contains("counting → 13 @ 104") && message.contains("this one is broken"), "{message}");
    }
}

#[test]
fn skip_leaves_bad_samples_out_counts_and_lists_them() {
    let source = Counting::new(16).broken_at(&[1, 4, 5, 6, 7]);
    let loader = builder(source).bad_samples(BadSamples::Skip).build().unwrap();
    let batches = epoch(&loader);
    // The second batch has no good sample and is skipped.
    assert_eq!(batches.iter().map(|batch| batch.number).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(batches[0].indices, [0, 2, 3]);
    assert_eq!(batches[0].shape, [3, 3, 2, 3]);
    assert_eq!(batches[0].images.chunks_exact(18).map(|image| image[0]).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(loader.meters().bad, 5);
    epoch(&loader);
    assert_eq!(loader.meters().bad, 5, "meters are per epoch");
    let bad = loader.bad_samples();
    assert_eq!(bad.iter().map(|sample| sample.index).collect::<Vec<_>>(), [1, 4, 5, 6, 7]);
    assert!(bad.iter().all(|sample| sample.times == 2 && sample.cause.contains("broken")));
}

#[test]
fn substitute_keeps_batches_full_and_deterministic() {
    let load = |workers| {
        let source = Counting::new(32).broken_at(&[3, 4, 5, 20]);
        let builder = builder(source).bad_samples(BadSamples::Substitute).shuffle().workers(workers);
        epoch(&builder.build().unwrap())
    };
    let batches = load(0);
    assert!(batches.iter().all(|batch| batch.len() == 4));
    let indices: HashSet<_> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
    assert_eq!(indices.len(), 28);
    for batch in &batches {
        let labels: Vec<_> = batch.indices.iter().map(|&index| index as u32 % 3).collect();
        assert_eq!(batch.labels, Some(labels));
    }
    assert_eq!(load(3), batches);
}

#[test]
fn an_epoch_without_a_good_sample_is_an_error_under_every_policy() {
    for policy in [BadSamples::Strict, BadSamples::Skip, BadSamples::Substitute] {
        for workers in [0, 2] {
            let source = Counting::new(9).broken_at(&(0..9).collect::<Vec<_>>());
            let loader = builder(source).bad_samples(policy).workers(workers).build().unwrap();
            let results: Vec<_> = within_seconds(20, move || loader.batches().collect());
            assert_eq!(results.len(), 1, "{policy:?}");
            assert!(results[0].as_ref().unwrap_err().to_string().contains("broken"), "{policy:?}");
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_under_every_policy() {
    for policy in [BadSamples::Strict, BadSamples::Skip, BadSamples::Substitute] {
        for workers in [0, 1, 2, 16] {
            let preprocess = Paint { panic_at: Some(6), ..Paint::default() };
            let builder = ImageLoader::builder(Arc::new(Counting::new(40)), Arc::new(preprocess));
            let loader = builder.batch_size(4).workers(workers).bad_samples(policy).build().unwrap();
            let results: Vec<_> = within_seconds(20, move || loader.iter().collect());
            assert_eq!(results.len(), 2);
            let message = results[1].as_ref().unwrap_err().to_string();
            assert!(message.contains("counting → 6") && message.contains("boom"), "{message}");
        }
    }
}

#[test]
fn memory_in_flight_is_bounded_in_bytes() {
    let source = Arc::new(Counting::new(400));
    let builder = ImageLoader::builder(source.clone(), Arc::new(Paint { size: [10, 10], panic_at: None }));
    // Room for three batches of 4 × 300 bytes, not for four.
    let loader = builder.batch_size(4).workers(3).memory_bytes(4000).build().unwrap();
    let mut batches = loader.batches();
    for taken in 1..=5 {
        batches.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let read = source.reads.load(Relaxed);
        assert_eq!(read, 4 * (taken + 3), "after {taken} batches");
    }
    // One batch is always allowed.
    let tiny = self::builder(Counting::new(12)).memory_bytes(0).build().unwrap();
    assert_eq!(within_seconds(20, move || epoch(&tiny).len()), 3);
}

#[test]
fn dropping_an_iterator_stops_its_workers() {
    within_seconds(60, || {
        for workers in [0, 1, 16] {
            for taken in [0, 1, 3] {
                let source = Arc::new(Counting::new(100_000));
                let builder = ImageLoader::builder(source.clone(), Arc::new(Paint::default()));
                let loader = builder.workers(workers).batch_size(8).memory_bytes(10_000).build().unwrap();
                let mut batches = loader.batches();
                for _ in 0..taken {
                    batches.next().unwrap().unwrap();
                }
                drop(batches);
                let read = source.reads.load(Relaxed);
                std::thread::sleep(Duration::from_millis(5));
                assert_eq!(source.reads.load(Relaxed), read, "nothing reads on");
                assert_eq!(Arc::strong_count(&loader.context), 1, "nothing holds the loader");
            }
        }
    });
}

#[test]
fn a_hundred_epochs_leave_nothing_behind() {
    let source = Counting::new(24).broken_at(&[5]);
    let loader = builder(source).shuffle().workers(4).bad_samples(BadSamples::Skip).build().unwrap();
    epoch(&loader);
    let mut most = 0;
    for number in 1..100 {
        assert_eq!(loader.next_start(), (number, 0));
        assert_eq!(epoch(&loader).iter().map(ImageBatch::len).sum::<usize>(), 23);
        assert_eq!(Arc::strong_count(&loader.context), 1, "workers and their share of the loader are gone");
        most = most.max(threads());
    }
    assert_eq!(loader.bad_samples().len(), 1);
    assert_eq!(loader.bad_samples()[0].times, 100);
    // Other tests run concurrently with at most 16 workers each; 99 epochs would have left 396 threads.
    assert!(most < 300, "{most} threads");
}

#[test]
fn burn_s_slices_split_each_epoch_and_count_epochs_by_themselves() {
    let loader = builder(Counting::new(22)).shuffle().build().unwrap();
    let device = Device::flex();
    let slices = [loader.slice(0, 11).to_device(&device), loader.slice(11, 22).to_device(&device)];
    for _ in 0..2 {
        let whole: Vec<usize> = epoch(&loader).into_iter().flat_map(|batch| batch.indices).collect();
        let parts: Vec<usize> = slices
            .iter()
            .flat_map(|slice| slice.iter().flat_map(|batch| batch.unwrap().indices).collect::<Vec<_>>())
            .collect();
        assert_eq!(whole, parts);
    }
    assert_eq!(slices[0].num_items(), 11);
    // The copy for a device is the same loader: what Burn consumes, the owner sees.
    let copy = loader.to_device(&device);
    copy.iter().for_each(drop);
    assert_eq!(loader.next_start(), (3, 0));
    assert_eq!(loader.meters().samples, 22);
}

#[test]
fn unlabeled_sources_are_refused_unless_allowed() {
    let source = Unlabeled(Counting::new(3));
    let builder = ImageLoader::builder(Arc::new(source), Arc::new(Paint::default())).workers(0);
    let message = builder.clone().build().unwrap_err().to_string();
    assert!(message.contains("counting → 0 @ 0 has no label"), "{message}");
    let loader = builder.allow_unlabeled(true).build().unwrap();
    assert_eq!(epoch(&loader)[0].labels, None);
}

struct Unlabeled(Counting);

impl Source for Unlabeled {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn classes(&self) -> &[crate::Class] {
        &[]
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn key(&self, index: usize) -> std::borrow::Cow<'_, str> {
        self.0.key(index)
    }
    fn location(&self, index: usize) -> crate::Location {
        self.0.location(index)
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        self.0.read(index, buffer)
    }
}

#[test]
fn impossible_settings_are_named() {
    let cases = [
        (builder(Counting::new(0)), "no samples"),
        (builder(Counting::new(9)).batch_size(0), "batch of 0"),
        (builder(Counting::new(3)).drop_last(true), "no full batch of 4"),
        (builder(Counting::new(9)).share(3, 3), "rank 3 of 3"),
        (builder(Counting::new(9)).part_of_batches(2, 2), "part 2 of 2"),
        (builder(Counting::new(9)).part_of_batches(0, 5), "5 processes cannot share batches of 4"),
    ];
    for (builder, part) in cases {
        let message = builder.build().unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
