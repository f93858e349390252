//! Classifies an image: `cargo run -p hearth-vision --example classify -- dog.jpg resnet50`.
//!
//! The second argument is a published name, a run folder or a weight file. Without arguments, trains ResNet-20 on the
//! digits that are compiled in and classifies one of them.

use std::{env, error::Error};

use hearth::{
    Classifier, ImageDataset, Trainer,
    datasets::{Source, Split},
    models::Architecture,
};

/// Classifies the image of the command line, or a digit.
pub fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [image, weights] = &arguments[..] {
        let is_path = std::path::Path::new(weights).exists();
        let classifier = if is_path { Classifier::open(weights)? } else { Classifier::pretrained(weights)? };
        print(&classifier, std::fs::read(image)?)?;
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let run = Trainer::pretrain(Architecture::ResNet20, "digits").epochs(2).artifacts(folder.path()).run()?;
    let digits = ImageDataset::open("digits", Split::Val)?;
    let mut bytes = Vec::new();
    digits.source().read(0, &mut bytes)?;
    print(&run.classifier()?, bytes)?;
    Ok(())
}

fn print(classifier: &Classifier, bytes: Vec<u8>) -> hearth::Result<()> {
    for class in classifier.classify(&bytes)? {
        println!("{:6.2} %  {}", 100.0 * class.probability, class.class);
    }
    println!("{} features", classifier.embed(&bytes)?.len());
    Ok(())
}
