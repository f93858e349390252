//! The loader in a training loop of Burn alone, with validation: `cargo run -p hearth-vision --example burn_loop`.

use std::{error::Error, sync::Arc};

use burn::{
    data::dataloader::DataLoader,
    module::Module,
    nn::loss::CrossEntropyLossConfig,
    optim::{GradientsParams, SgdConfig},
    tensor::Device,
};
use hearth::{
    ImageDataset,
    datasets::{ImageBatch, Split},
    models::{Architecture, ImageClassifier, NetworkConfig},
};

const MEAN: [f32; 3] = [0.305; 3];
const STD: [f32; 3] = [0.37; 3];

/// Trains for two epochs.
pub fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex().autodiff();
    device.seed(0);
    // What an epoch yields depends on the seed, the epoch and the index of each image alone.
    let train = ImageDataset::open("digits", Split::Train)?.resize(16).batch_size(32).shuffle(0).drop_last();
    let valid = ImageDataset::open("digits", Split::Val)?.resize(16).batch_size(128);
    let (train, valid): (Arc<dyn DataLoader<ImageBatch>>, _) = (train.data_loader()?, valid.data_loader()?);

    let mut network = NetworkConfig::new(Architecture::ResNet20).init(&device);
    let mut optimizer = SgdConfig::new().init();
    let loss = CrossEntropyLossConfig::new().init(&device);
    for epoch in 1..=2 {
        for batch in train.iter() {
            let batch = batch?;
            let logits = network.forward(batch.normalize(MEAN, STD, &device));
            let gradients = loss.forward(logits, batch.targets(&device)).backward();
            let gradients = GradientsParams::from_grads(gradients, &network);
            network = optimizer.step(0.1, network, gradients);
        }
        let (evaluated, host) = (network.valid(), Device::flex());
        let (mut right, mut images) = (0, 0);
        for batch in valid.iter() {
            let batch = batch?;
            let classes = evaluated.forward(batch.normalize(MEAN, STD, &host)).argmax(1).squeeze_dim::<1>(1);
            right += classes.equal(batch.targets(&host)).int().sum().into_scalar::<i64>();
            images += batch.len();
        }
        println!("epoch {epoch}: {right} of {images} validation images are right");
    }
    Ok(())
}
