//! Finds similar images by their feature vectors: `cargo run -p hearth-vision --example embedding_search`.

use std::error::Error;

use hearth::{
    ImageDataset, Trainer,
    datasets::{Source, Split},
    models::Architecture,
};

/// Searches the training images for those most similar to validation images.
pub fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let run = Trainer::pretrain(Architecture::ResNet20, "digits").epochs(2).artifacts(folder.path()).run()?;
    let classifier = run.classifier()?;

    let (library, queries) = (read(Split::Train, 200)?, read(Split::Val, 20)?);
    let vectors = classifier.embed_batch(library.iter().map(|(_, bytes)| bytes))?;
    let mut right = 0;
    for (label, bytes) in &queries {
        let query = classifier.embed(bytes)?;
        let nearest = (0..vectors.len())
            .max_by(|&a, &b| cosine(&query, &vectors[a]).total_cmp(&cosine(&query, &vectors[b])))
            .ok_or("an empty library")?;
        let (found, _) = &library[nearest];
        println!("digit {label}: nearest is number {nearest}, a {found}");
        right += usize::from(found == label);
    }
    println!("{right} of {} neighbors show the same digit", queries.len());
    Ok(())
}

/// The label and encoded bytes of the first images of a split.
fn read(split: Split, count: usize) -> hearth::Result<Vec<(u32, Vec<u8>)>> {
    let digits = ImageDataset::open("digits", split)?;
    let image = |index| {
        let mut bytes = Vec::new();
        digits.source().read(index, &mut bytes)?;
        Ok((digits.source().label(index).unwrap_or_default(), bytes))
    };
    (0..count.min(digits.len())).map(image).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
