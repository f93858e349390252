//! Fine-tunes weights on images in one folder per class: `cargo run -p hearth-vision --example finetune_folder -- resnet18
//! photos/`, with `photos/train/CLASS/` and `photos/val/CLASS/`.
//!
//! Without arguments, the images are drawn, and the weights are those of a network that was trained on digits.

use std::{env, error::Error, fs, path::Path};

use hearth::{
    Flow, Trainer,
    image::{Rgb, RgbImage},
    models::Architecture,
};

/// Fine-tunes the weights of the command line, or those of a network for digits.
pub fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let folder = tempfile::tempdir()?;
    let (weights, data) = match &arguments[..] {
        [weights, data] => (weights.clone(), Path::new(data).to_path_buf()),
        _ => {
            let data = folder.path().join("stripes");
            draw(&data)?;
            let digits =
                Trainer::pretrain(Architecture::ResNet20, "digits").epochs(1).artifacts(folder.path()).run()?;
            (digits.folder().to_string_lossy().into_owned(), data)
        }
    };
    let run = Trainer::finetune(weights, &data)
        .epochs(4)
        .batch_size(16)
        .learning_rate(0.05)
        .artifacts(folder.path())
        .on_epoch(|epoch| {
            println!("epoch {}: {:.1} %", epoch.record.epoch, epoch.record.valid.top1);
            if epoch.record.valid.top1 == 100.0 { Flow::Stop } else { Flow::Continue }
        })
        .run()?;
    println!("best: {:.1} %, in {}", run.best().ok_or("no epoch")?.top1, run.folder().display());
    let image =
        fs::read_dir(data.join("val"))?.next().ok_or("no class")??.path().read_dir()?.next().ok_or("empty")??;
    println!("{}: {:?}", image.path().display(), run.classifier()?.classify(&image.path())?);
    Ok(())
}

/// Draws horizontal and vertical stripes.
fn draw(data: &Path) -> Result<(), Box<dyn Error>> {
    for (split, count) in [("train", 48), ("val", 8)] {
        for (class, is_vertical) in [("horizontal", false), ("vertical", true)] {
            let folder = data.join(split).join(class);
            fs::create_dir_all(&folder)?;
            for number in 0..count {
                let stripe = |x, y| ((if is_vertical { x } else { y } + number) / 4 % 2 * (120 + number)) as u8;
                let image = RgbImage::from_fn(24, 24, |x, y| Rgb([stripe(x, y), 60, 90]));
                image.save(folder.join(format!("{number}.png")))?;
            }
        }
    }
    Ok(())
}
