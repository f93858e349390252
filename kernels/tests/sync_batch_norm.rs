//! Synchronized batch normalization: two processes, played by threads, each with a half of a batch, against one with all
//! of it.

mod two;

use burn::tensor::{Device, Tensor, TensorData};
use kernels::AllReduce;

/// Output, running statistics' source, and the gradients of input, scale and shift.
type Results = [Vec<f32>; 6];

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Images `range` of a batch, through a norm with a residual and a ReLU.
fn normalise([c, h, w]: [usize; 3], range: std::ops::Range<usize>, sync: Option<&AllReduce>) -> Results {
    let device = Device::flex().autodiff();
    let len = c * h * w;
    let part = |seed: u64| -> Tensor<4> {
        let all = values(range.end * len, seed);
        Tensor::from_data(TensorData::new(all[range.start * len..].to_vec(), [range.len(), c, h, w]), &device)
    };
    let vector =
        |seed: u64| -> Tensor<1> { Tensor::from_data(TensorData::new(values(c, seed), [c]), &device).require_grad() };
    let x = (part(1) * 3.0 + 0.5).detach().require_grad();
    let (gamma, beta) = (vector(2), vector(3));
    let weights = [gamma.clone(), beta.clone()];
    let (y, mean, variance) = kernels::batch_norm(x.clone(), weights, 1e-5, Some(part(4)), true, sync);
    let gradients = (y.clone() * part(5)).sum().backward();
    let gradient = |x: &Tensor<1>| floats(x.grad(&gradients).expect("a gradient"));
    let dx = floats(x.grad(&gradients).expect("a gradient"));
    [floats(y), floats(mean), floats(variance), dx, gradient(&gamma), gradient(&beta)]
}

fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = b.iter().fold(0.05f32, |largest, value| largest.max(value.abs()));
    let difference = a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(difference <= 1e-5 * largest, "{what}: off by {difference} of {largest}");
}

#[test]
fn halves_of_a_batch_are_normalised_as_the_whole() {
    for (shape, n, cut) in [([5, 4, 3], 6, 3), ([64, 7, 7], 5, 2), ([1, 1, 1], 8, 1)] {
        let whole = normalise(shape, 0..n, None);
        let sum = Some(&two::sum());
        let (first, second) = two::run(|| normalise(shape, 0..cut, sum), || normalise(shape, cut..n, sum));

        for (index, what) in [(0, "output"), (3, "gradient of the input")] {
            close(&[&first[index][..], &second[index]].concat(), &whole[index], what);
        }
        for (index, what) in [(1, "mean"), (2, "variance")] {
            close(&first[index], &whole[index], what);
            assert_eq!(first[index], second[index], "{what}: the same bits on both");
        }
        for (index, what) in [(4, "gradient of the scale"), (5, "gradient of the shift")] {
            // Each has that of its own images.
            let sum: Vec<f32> = first[index].iter().zip(&second[index]).map(|(a, b)| a + b).collect();
            close(&sum, &whole[index], what);
        }
    }
}
