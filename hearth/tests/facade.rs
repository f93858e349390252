//! The facade on small networks and data sets.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use burn::tensor::Device;
use hearth::{
    Classifier, DeviceSpec, Flow, ImageDataset, ImageInput, Recipe, Trainer,
    datasets::{Source, Split},
    image::{self, DynamicImage},
    models::{Architecture, NetworkConfig},
};
use tempfile::TempDir;

/// Keeps tests from drawing from Burn's random generators, which belong to the process, while another one trains.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder of a run of two epochs on digits.
fn digits_run() -> &'static Path {
    static RUN: OnceLock<(TempDir, std::path::PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let trainer = Trainer::pretrain(Architecture::ResNet20, "digits").epochs(2).artifacts(folder.path());
        let run = trainer.run().unwrap().folder().to_path_buf();
        (folder, run)
    });
    run
}

/// The encoded bytes of a validation image.
fn digit(index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    ImageDataset::open("digits", Split::Val).unwrap().source().read(index, &mut bytes).unwrap();
    bytes
}

/// The message of an error, which names no flag of a command line.
fn message<T>(result: hearth::Result<T>) -> String {
    let message = result.err().expect("an error").to_string();
    assert!(!message.contains("--"), "{message}");
    message
}

#[test]
fn files_bytes_images_and_buffers_have_the_same_result() {
    let _alone = alone();
    let classifier = Classifier::open(digits_run()).unwrap();
    let bytes = digit(3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("digit.png");
    fs::write(&path, &bytes).unwrap();
    let image: DynamicImage = image::load_from_memory(&bytes).unwrap();
    let rgb = image.to_rgb8();
    let buffer = ImageInput::rgb(rgb.width(), rgb.height(), rgb.as_raw()).unwrap();
    let expected = classifier.classify(&path).unwrap();
    assert_eq!(expected.len(), 5);
    assert!(expected.is_sorted_by(|a, b| a.probability >= b.probability));
    assert_eq!(classifier.classify(&bytes).unwrap(), expected);
    assert_eq!(classifier.classify(&image).unwrap(), expected);
    assert_eq!(classifier.classify(&rgb).unwrap(), expected);
    assert_eq!(classifier.classify(buffer).unwrap(), expected);
    // Of 16 bits, as the decoder converts them.
    let deep = DynamicImage::ImageLuma16(image.to_luma16());
    let mut encoded = std::io::Cursor::new(Vec::new());
    deep.write_to(&mut encoded, image::ImageFormat::Png).unwrap();
    assert_eq!(classifier.classify(&deep).unwrap(), classifier.classify(encoded.get_ref()).unwrap());
    assert!(message(classifier.classify(&image::RgbImage::new(0, 3))).contains("there are none"));
    let probabilities = classifier.probabilities(&bytes).unwrap();
    assert_eq!(probabilities.len(), classifier.classes().len());
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert_eq!(probabilities[expected[0].index], expected[0].probability);
    assert_eq!(expected[0].class, classifier.classes()[expected[0].index]);
}

#[test]
fn batches_have_the_results_of_single_images() {
    let _alone = alone();
    let classifier = Classifier::builder().top(1).open(digits_run()).unwrap();
    let images: Vec<Vec<u8>> = (0..35).map(digit).collect();
    let classes = classifier.classify_batch(&images).unwrap();
    let vectors = classifier.embed_batch(&images).unwrap();
    assert_eq!((classes.len(), vectors.len()), (35, 35));
    for (index, bytes) in images.iter().enumerate() {
        let [class] = &classifier.classify(bytes).unwrap()[..] else { panic!("one class was asked for") };
        assert_eq!(class.class, classes[index][0].class);
        assert!((class.probability - classes[index][0].probability).abs() < 1e-5);
        let vector = classifier.embed(bytes).unwrap();
        assert!(vector.len() == 64 && vector.iter().zip(&vectors[index]).all(|(a, b)| (a - b).abs() < 1e-4));
    }
    assert!(classifier.classify_batch([] as [&str; 0]).unwrap().is_empty());
}

#[test]
fn most_digits_are_classified_correctly_after_two_epochs() {
    let _alone = alone();
    let digits = ImageDataset::open("digits", Split::Val).unwrap();
    let images: Vec<Vec<u8>> = (0..100).map(digit).collect();
    let classes = Classifier::open(digits_run()).unwrap().classify_batch(&images).unwrap();
    let right = (0..100).filter(|&index| digits.source().label(index) == Some(classes[index][0].index as u32)).count();
    assert!(right > 50, "{right} of 100");
}

#[test]
fn a_network_of_one_s_own_classifies_by_its_card() {
    let _alone = alone();
    let device = Device::flex();
    let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(10).init(&device);
    let card = Classifier::open(digits_run()).unwrap().card().clone();
    let classifier = Classifier::from_network(network, card.clone(), &device).unwrap();
    assert_eq!(classifier.classify(&digit(0)).unwrap().len(), 5);
    let other = NetworkConfig::new(Architecture::ResNet20).with_num_classes(3).init(&device);
    let error = message(Classifier::from_network(other, card, &device));
    assert!(error.contains("10 classes, its last layer 3"), "{error}");
}

#[test]
fn a_network_with_one_output_is_a_classifier_by_a_sigmoid_alone() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one.safetensors");
    let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(1).init(&Device::flex());
    let mut card = Classifier::open(digits_run()).unwrap().card().clone();
    card.classes = vec!["zero".to_string()];
    hearth::hub::weights::save(&network, &card, &path).unwrap();
    let error = message(Classifier::open(&path));
    assert!(error.contains("one output") && error.contains("activation"), "{error}");
    let error = message(Classifier::from_network(network, card, &Device::flex()));
    assert!(error.contains("one output"), "{error}");
    let classifier = Classifier::builder().activation(hearth::hub::Activation::Sigmoid).open(&path).unwrap();
    assert_eq!(classifier.classes(), ["not zero", "zero"]);
    let probabilities = classifier.probabilities(&digit(0)).unwrap();
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{probabilities:?}");
}

#[test]
fn what_cannot_be_opened_is_named_with_its_cause_and_remedy() {
    let _alone = alone();
    assert!(message(Classifier::pretrained("resnet5")).contains("did you mean resnet5"));
    assert!(message(Classifier::open("missing.pth")).contains("cannot read missing.pth"));
    let folder = tempfile::tempdir().unwrap();
    let error = message(Classifier::open(folder.path()));
    assert!(error.contains("it is not a run folder") && error.contains("give the folder of a run"), "{error}");
    let offline = Classifier::builder().offline(true).cache_dir(folder.path()).pretrained("resnet18");
    let error = message(offline);
    assert!(error.contains("`offline`") && error.contains("resnet18"), "{error}");
    let other = Classifier::builder().architecture(Architecture::ResNet56).open(digits_run());
    let error = message(other);
    assert!(error.contains("they are for resnet20") && error.contains("leave it out"), "{error}");

    let classifier = Classifier::open(digits_run()).unwrap();
    assert!(message(classifier.classify("missing.jpg")).contains("cannot read missing.jpg"));
    assert!(message(classifier.classify(&b"no image"[..])).contains("cannot decode an image of 8 bytes"));
    let error = message(ImageInput::rgb(2, 2, &[0; 11]));
    assert!(error.contains("11 bytes for 2 × 2 pixels; give 12 bytes"), "{error}");
    assert!(message("cuda:x".parse::<DeviceSpec>()).contains("cuda:x"));
    assert!(message(ImageDataset::open("missing", Split::Train)).contains("missing"));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_backend_that_is_not_compiled_in_names_its_feature() {
    let _alone = alone();
    let error = message("cuda".parse::<DeviceSpec>().unwrap().open());
    assert!(error.contains("enable the feature `cuda` of hearth-vision"), "{error}");
}

#[test]
fn a_run_folder_has_what_the_program_writes() {
    let _alone = alone();
    let run = digits_run();
    let files = ["recipe.toml", "run.json", "card.json", "metrics.csv", "epochs.csv", "report.html", "predictions.csv"];
    for file in files.iter().chain(&["weights.safetensors", "last.safetensors"]) {
        assert!(run.join(file).is_file(), "{file}");
    }
    let metrics = fs::read_to_string(run.join("metrics.csv")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains(",valid,")).count(), 2, "{metrics}");
}

#[test]
fn a_run_that_a_callback_stops_resumes_to_the_bits_of_one_that_was_not() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let recipe = fs::read_to_string(digits_run().join("recipe.toml")).unwrap();
    let steps = Arc::new(AtomicUsize::new(0));
    let counted = steps.clone();
    let stopped = Trainer::from_toml(&recipe)
        .unwrap()
        .artifacts(folder.path())
        .on_step(move |step| {
            counted.fetch_add(1, Ordering::Relaxed);
            if step.step == 20 { Flow::Stop } else { Flow::Continue }
        })
        .run()
        .unwrap();
    assert!(stopped.is_stopped() && stopped.best().is_none() && stopped.steps() == 20);
    assert_eq!(steps.load(Ordering::Relaxed), 20);
    let error = message(stopped.classifier());
    assert!(error.contains("give the folder of a run with a finished epoch"), "{error}");

    let epochs = Arc::new(AtomicUsize::new(0));
    let counted = epochs.clone();
    let resumed = Trainer::resume(stopped.folder()).on_epoch(move |epoch| {
        assert_eq!(counted.fetch_add(1, Ordering::Relaxed) + 1, epoch.record.epoch);
        Flow::Continue
    });
    let resumed = resumed.run().unwrap();
    assert_eq!((epochs.load(Ordering::Relaxed), resumed.history().len()), (2, 2));
    assert_eq!(resumed.best().unwrap(), resumed.history()[resumed.best_epoch().unwrap() - 1].valid);
    let weights = |run: &Path| Classifier::open(run).unwrap().embed_batch((0..8).map(digit).collect::<Vec<_>>().iter());
    assert_eq!(weights(resumed.folder()).unwrap(), weights(digits_run()).unwrap());
    let error = message(Trainer::resume(resumed.folder()).run());
    assert!(error.contains("is finished"), "{error}");
}

#[test]
fn the_builder_changes_the_recipe_that_is_trained() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = Trainer::pretrain(Architecture::Plain20, "digits")
        .epochs(1)
        .batch_size(64)
        .learning_rate(0.05)
        .seed(7)
        .image_size(8)
        .recipe(|recipe| recipe.optimizer.nesterov = Some(true))
        .folder(folder.path().join("run"))
        .on_step(|_| Flow::Stop)
        .run()
        .unwrap();
    assert_eq!(run.folder(), folder.path().join("run"));
    let recipe = Trainer::from_toml(&fs::read_to_string(run.folder().join("recipe.toml")).unwrap()).unwrap();
    let mut written: Option<Recipe> = None;
    drop(recipe.recipe(|recipe| written = Some(recipe.clone())));
    let written = written.unwrap();
    assert_eq!(
        (written.architecture, written.epochs, written.batch_size, written.seed),
        (Architecture::Plain20, 1, 64, 7)
    );
    assert_eq!((written.schedule.learning_rate, written.optimizer.nesterov), (0.05, Some(true)));
    assert_eq!((written.images.size(), written.images.eval.crop), (Some(8), 8));
}

#[test]
fn a_training_that_cannot_start_names_the_key_or_the_file() {
    let _alone = alone();
    let digits = || Trainer::pretrain(Architecture::ResNet20, "digits").folder("never-created");
    assert!(message(digits().epochs(0).run()).contains("epochs is 0"));
    assert!(message(digits().data("missing").run()).contains("missing"));
    assert!(message(digits().learning_rate(-1.0).run()).contains("schedule.learning_rate is -1"));
    assert!(message(Trainer::finetune("missing.pth", "digits").run()).contains("cannot read missing.pth"));
    assert!(message(Trainer::finetune("resnet5", "digits").run()).contains("did you mean resnet5"));
    let error = message(Trainer::from_toml("epochs = 1\nbatch_sise = 4").map(|_| ()));
    assert!(error.contains("batch_sise") && error.contains("did you mean `batch_size`?"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("one/a")).unwrap();
    fs::write(folder.path().join("one/a/0.png"), digit(0)).unwrap();
    let one = folder.path().join("one");
    assert!(message(digits().data(&one).validation_fraction(0.5).run()).contains("one"));
    assert!(!Path::new("never-created").exists());
}

#[test]
fn a_loader_s_images_depend_on_seed_epoch_and_index_alone() {
    let _alone = alone();
    let epochs = |workers: usize, seed: u64| {
        let digits = ImageDataset::open("digits", Split::Train).unwrap();
        let loader = digits.augment(16).batch_size(100).shuffle(seed).workers(workers).data_loader().unwrap();
        let epoch = || loader.iter().take(2).map(|batch| batch.unwrap()).collect::<Vec<_>>();
        (epoch(), epoch())
    };
    let (first, second) = epochs(1, 5);
    assert_ne!(first, second, "each epoch has an order and augmentation of its own");
    assert_eq!((first.clone(), second), epochs(3, 5));
    assert_ne!(first, epochs(1, 6).0);
    let (shape, labels) = (first[0].shape, first[0].labels.clone().unwrap());
    assert_eq!((shape, labels.len()), ([100, 3, 16, 16], 100));
}
