//! Every public operation rejects arguments that do not fit together, whatever implements it: shapes are never broadcast,
//! and nothing is read or written out of bounds.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

use burn::tensor::{DType, Device, Tensor, ops::ConvOptions};
use kernels::{AllReduce, Epilogue, LocalResponseNorm, Pool2d, Precision, Sgd};

fn ones<const D: usize>(shape: [usize; D], device: &(Device, DType)) -> Tensor<D> {
    Tensor::ones(shape, (&device.0, device.1))
}

/// The message of the panic, if there is one.
fn panic_of(work: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(work)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
}

/// A call with an argument changed, and what its panic must mention; nothing for a call that must succeed.
type Case<'a> = (&'a str, &'a str, Box<dyn Fn(&(Device, DType)) + 'a>);

fn case<'a>(name: &'a str, message: &'a str, work: impl Fn(&(Device, DType)) + 'a) -> Case<'a> {
    (name, message, Box::new(work))
}

/// Runs all cases on the optimized bodies (f32) and on the reference bodies (f64), with and without autodiff.
fn check(cases: &[Case<'_>]) {
    // The hook is the process's.
    static LOCK: Mutex<()> = Mutex::new(());
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let mut failures = Vec::new();
    for dtype in [DType::F32, DType::F64] {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let device = (device, dtype);
            for (name, message, work) in cases {
                let panic = panic_of(|| work(&device));
                let fits = match &panic {
                    None => message.is_empty(),
                    Some(panic) => !message.is_empty() && panic.contains(message),
                };
                if !fits {
                    failures.push(format!("{name} ({dtype:?}): {panic:?}, expected {message:?}"));
                }
            }
        }
    }
    std::panic::set_hook(hook);
    drop(lock);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

struct Conv {
    x: [usize; 4],
    weight: [usize; 4],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
    scale: Option<usize>,
    bias: Option<usize>,
    residual: Option<[usize; 4]>,
    precision: Precision,
}

impl Default for Conv {
    fn default() -> Self {
        Self {
            x: [2, 4, 9, 8],
            weight: [6, 4, 3, 3],
            stride: [1, 1],
            padding: [1, 1],
            dilation: [1, 1],
            groups: 1,
            scale: None,
            bias: None,
            residual: None,
            precision: Precision::F32,
        }
    }
}

impl Conv {
    fn run(&self, device: &(Device, DType)) -> Tensor<4> {
        let padding = self.padding.map(|padding| (padding, padding));
        let options = ConvOptions { stride: self.stride, padding, dilation: self.dilation, groups: self.groups };
        let epilogue = Epilogue {
            scale: self.scale.map(|c| ones([c], device)),
            bias: self.bias.map(|c| ones([c], device)),
            residual: self.residual.map(|shape| ones(shape, device)),
            relu: true,
        };
        kernels::conv2d(ones(self.x, device), ones(self.weight, device), options, epilogue, self.precision)
    }
}

#[test]
fn convolutions_check_their_arguments() {
    let conv = |name, message, conv: Conv| case(name, message, move |device| drop(conv.run(device)));
    let d = Conv::default;
    let mut cases = vec![
        conv("as it should be", "", d()),
        conv("with all", "", Conv { scale: Some(6), bias: Some(6), residual: Some([2, 6, 9, 8]), ..d() }),
        conv("no images", "", Conv { x: [0, 4, 9, 8], residual: Some([0, 6, 9, 8]), ..d() }),
        conv("a residual that Burn would broadcast", "the residual", Conv { residual: Some([1, 6, 9, 8]), ..d() }),
        conv("a residual of another height", "the residual", Conv { residual: Some([2, 6, 8, 8]), ..d() }),
        conv("a residual of one pixel", "the residual", Conv { residual: Some([2, 6, 1, 1]), ..d() }),
        conv("a residual of other channels", "the residual", Conv { residual: Some([2, 1, 9, 8]), ..d() }),
        conv("a short scale", "the scale", Conv { scale: Some(5), ..d() }),
        conv("a scale for all channels", "the scale", Conv { scale: Some(1), ..d() }),
        conv("a long scale", "the scale", Conv { scale: Some(7), ..d() }),
        conv("a short bias", "the bias", Conv { bias: Some(5), ..d() }),
        conv("a bias for all channels", "the bias", Conv { bias: Some(1), ..d() }),
        conv("an empty bias", "the bias", Conv { bias: Some(0), ..d() }),
        conv("a weight of too many inputs", "the weight", Conv { weight: [6, 5, 3, 3], ..d() }),
        conv("a weight of too few inputs", "the weight", Conv { weight: [6, 3, 3, 3], ..d() }),
        conv("groups whose weight has all inputs", "the weight", Conv { groups: 2, ..d() }),
        conv("groups that do not divide the inputs", "groups", Conv { groups: 3, weight: [6, 1, 3, 3], ..d() }),
        conv("groups that do not divide the outputs", "groups", Conv { groups: 4, weight: [6, 1, 3, 3], ..d() }),
        conv("no groups", "groups", Conv { groups: 0, ..d() }),
        conv("a stride of zero", "the stride", Conv { stride: [1, 0], ..d() }),
        conv("a dilation of zero", "the dilation", Conv { dilation: [0, 1], ..d() }),
        conv("a kernel that does not fit", "does not fit", Conv { weight: [6, 4, 12, 3], ..d() }),
        conv("a dilation that does not fit", "does not fit", Conv { dilation: [6, 1], ..d() }),
        conv("a dilation that overflows", "does not fit", Conv { dilation: [1, usize::MAX], ..d() }),
        conv("a padding that overflows", "", Conv { padding: [0, 0], ..d() }),
        conv("an endless padding", "does not fit", Conv { padding: [usize::MAX, 1], ..d() }),
        conv("a padding beyond memory", "address space", Conv { padding: [1 << 61, 1], ..d() }),
        conv("no input channels", "x has a size of zero", Conv { x: [2, 0, 9, 8], weight: [6, 0, 3, 3], ..d() }),
        conv("no output channels", "the weight has a size of zero", Conv { weight: [0, 4, 3, 3], ..d() }),
        conv("no pixels", "x has a size of zero", Conv { x: [2, 4, 0, 8], ..d() }),
        conv("no kernel", "the weight has a size of zero", Conv { weight: [6, 4, 0, 3], ..d() }),
    ];
    for precision in [Precision::Bf16, Precision::Bf16Activations] {
        cases.push(conv(
            "bf16, a small residual",
            "the residual",
            Conv { precision, residual: Some([1, 6, 9, 8]), ..d() },
        ));
        cases.push(conv("bf16, a short bias", "the bias", Conv { precision, bias: Some(5), ..d() }));
    }
    for kernel in [1, 3, 5] {
        // Every algorithm has a residual: few channels, pointwise, Winograd.
        for channels in [3, 64] {
            cases.push(conv(
                "another algorithm",
                "the residual",
                Conv {
                    x: [2, channels, 32, 32],
                    weight: [64, channels, kernel, kernel],
                    padding: [kernel / 2; 2],
                    residual: Some([1, 64, 32, 32]),
                    ..d()
                },
            ));
        }
    }
    check(&cases);
}

#[test]
fn types_must_match() {
    let other = |dtype| if dtype == DType::F32 { DType::F64 } else { DType::F32 };
    let with = |device: &(Device, DType)| (device.0.clone(), other(device.1));
    let conv = |change: fn(&mut [DType; 5], DType)| {
        move |device: &(Device, DType)| {
            let mut dtypes = [device.1; 5];
            change(&mut dtypes, other(device.1));
            let on = dtypes.map(|dtype| (device.0.clone(), dtype));
            let epilogue = Epilogue {
                scale: Some(ones([3], &on[2])),
                bias: Some(ones([3], &on[3])),
                residual: Some(ones([1, 3, 4, 4], &on[4])),
                relu: false,
            };
            let options = ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
            let (x, weight) = (ones([1, 2, 4, 4], &on[0]), ones([3, 2, 1, 1], &on[1]));
            drop(kernels::conv2d(x, weight, options, epilogue, Precision::F32));
        }
    };
    check(&[
        case("x", "x has the type", conv(|dtypes, other| dtypes[0] = other)),
        case("scale", "the scale has the type", conv(|dtypes, other| dtypes[2] = other)),
        case("bias", "the bias has the type", conv(|dtypes, other| dtypes[3] = other)),
        case("residual", "the residual has the type", conv(|dtypes, other| dtypes[4] = other)),
        case("batch norm, x", "x has the type", |on| {
            let weights = [ones([2], on), ones([2], on)];
            kernels::batch_norm(ones([1, 2, 4, 4], &with(on)), weights, 1e-5, None, false, None);
        }),
        case("batch norm, beta", "beta has the type", |on| {
            let weights = [ones([2], on), ones([2], &with(on))];
            kernels::batch_norm(ones([1, 2, 4, 4], on), weights, 1e-5, None, false, None);
        }),
        case("batch norm, a residual in bf16", "the residual has the type", |on| {
            let residual = ones([1, 2, 4, 4], &(on.0.clone(), DType::BF16));
            kernels::batch_norm(
                ones([1, 2, 4, 4], on),
                [ones([2], on), ones([2], on)],
                1e-5,
                Some(residual),
                false,
                None,
            );
        }),
        case("affine, residual", "the residual has the type", |on| {
            let residual = ones([1, 2, 4, 4], &with(on));
            kernels::channel_affine(ones([1, 2, 4, 4], on), [ones([2], on), ones([2], on)], Some(residual), false);
        }),
        case("linear", "x has the type", |on| {
            kernels::linear(ones([1, 2], &with(on)), ones([2, 3], on), None, Precision::F32);
        }),
        case("linear, bias", "the bias has the type", |on| {
            kernels::linear(ones([1, 2], on), ones([2, 3], on), Some(ones([3], &with(on))), Precision::F32);
        }),
        case("cross entropy", "the targets has the type", |on| {
            kernels::cross_entropy(ones([1, 2], on), ones([1, 2], &with(on)));
        }),
        case("cat", "tensor 1 has the type", |on| {
            kernels::cat([ones([1, 2, 1, 1], on), ones([1, 2, 1, 1], &with(on))]);
        }),
    ]);
}

#[test]
fn a_norm_that_no_optimized_operation_supports_is_not_synchronized_in_silence() {
    let on = (Device::flex(), DType::F64);
    let sum = AllReduce::new(|_: &mut [f64]| ());
    let norm = |on: &(Device, DType)| {
        kernels::batch_norm(ones([1, 2, 4, 4], on), [ones([2], on), ones([2], on)], 1e-5, None, false, Some(&sum));
    };
    let panic = panic_of(|| norm(&on)).expect("f64 has no optimized operations");
    assert!(panic.contains("no others synchronize"), "{panic}");
    assert_eq!(panic_of(|| norm(&(on.0.clone(), DType::F32))), None);
}

#[test]
fn norms_check_their_arguments() {
    let norm = |x: [usize; 4], gamma: usize, beta: usize, residual: Option<[usize; 4]>, epsilon: f64| {
        move |on: &(Device, DType)| {
            let residual = residual.map(|shape| ones(shape, on));
            let weights = [ones([gamma], on), ones([beta], on)];
            let (y, mean, variance) = kernels::batch_norm(ones(x, on), weights, epsilon, residual, true, None);
            assert_eq!((y.dims(), mean.dims(), variance.dims()), (x, [x[1]], [x[1]]));
        }
    };
    let affine = |x: [usize; 4], scale: usize, shift: usize, residual: Option<[usize; 4]>| {
        move |on: &(Device, DType)| {
            let residual = residual.map(|shape| ones(shape, on));
            let y = kernels::channel_affine(ones(x, on), [ones([scale], on), ones([shift], on)], residual, true);
            assert_eq!(y.dims(), x);
        }
    };
    let x = [2, 64, 5, 3];
    check(&[
        case("norm, as it should be", "", norm(x, 64, 64, Some(x), 1e-5)),
        case("norm, no epsilon", "", norm(x, 64, 64, None, 0.0)),
        case("a norm of 512 channels", "gamma", norm(x, 512, 512, None, 1e-5)),
        case("a norm of 32 channels", "gamma", norm(x, 32, 32, None, 1e-5)),
        case("gamma for all channels", "gamma", norm(x, 1, 64, None, 1e-5)),
        case("a short beta", "beta", norm(x, 64, 63, None, 1e-5)),
        case("a residual that Burn would broadcast", "the residual", norm(x, 64, 64, Some([1, 64, 5, 3]), 1e-5)),
        case("a residual of one pixel", "the residual", norm(x, 64, 64, Some([2, 64, 1, 1]), 1e-5)),
        case("a residual of as many values", "the residual", norm(x, 64, 64, Some([2, 64, 3, 5]), 1e-5)),
        case("a negative epsilon", "epsilon", norm(x, 64, 64, None, -1e-5)),
        case("epsilon not a number", "epsilon", norm(x, 64, 64, None, f64::NAN)),
        case("an infinite epsilon", "epsilon", norm(x, 64, 64, None, f64::INFINITY)),
        case("no images", "x has a size of zero", norm([0, 64, 5, 3], 64, 64, None, 1e-5)),
        case("no channels", "x has a size of zero", norm([2, 0, 5, 3], 0, 0, None, 1e-5)),
        case("no pixels", "x has a size of zero", norm([2, 64, 0, 3], 64, 64, None, 1e-5)),
        case("affine, as it should be", "", affine(x, 64, 64, Some(x))),
        case("affine, no images", "", affine([0, 64, 5, 3], 64, 64, None)),
        case("affine, no channels", "", affine([2, 0, 5, 3], 0, 0, None)),
        case("a short scale", "the scale", affine(x, 63, 64, None)),
        case("a scale for all channels", "the scale", affine(x, 1, 64, None)),
        case("a short shift", "the shift", affine(x, 64, 63, None)),
        case("a shift for all channels", "the shift", affine(x, 64, 1, None)),
        case("a residual that Burn would broadcast", "the residual", affine(x, 64, 64, Some([1, 64, 5, 3]))),
        case("a residual of one channel", "the residual", affine(x, 64, 64, Some([2, 1, 5, 3]))),
    ]);
}

#[test]
fn poolings_check_their_arguments() {
    let good = Pool2d { kernel: [3, 2], stride: [2, 1], padding: [1, 0], ceil_mode: true, count_include_pad: true };
    let x = [2, 3, 7, 6];
    let windows: [(&str, &str, [usize; 4], Pool2d); 13] = [
        ("as it should be", "", x, good),
        ("no images", "", [0, 3, 7, 6], Pool2d { ceil_mode: false, ..good }),
        ("no channels", "x has a size of zero", [2, 0, 7, 6], good),
        ("no pixels", "x has a size of zero", [2, 3, 0, 6], good),
        ("no kernel", "the kernel", x, Pool2d { kernel: [0, 2], padding: [0, 0], ..good }),
        ("no stride", "the stride", x, Pool2d { stride: [2, 0], ..good }),
        ("an empty window", "windows would be empty", x, Pool2d { padding: [3, 0], ..good }),
        ("an endless padding", "windows would be empty", x, Pool2d { padding: [1, usize::MAX], ..good }),
        (
            "a padding that overflows",
            "does not fit",
            x,
            Pool2d { kernel: [usize::MAX, 1], padding: [1 << 63, 0], ..good },
        ),
        ("a kernel that does not fit", "does not fit", x, Pool2d { kernel: [12, 2], ..good }),
        ("a stride past the end", "", x, Pool2d { stride: [100, 100], ..good }),
        ("a stride that overflows", "does not fit", x, Pool2d { stride: [usize::MAX, 1], ..good }),
        ("windows of more than 256 values", "", [1, 1, 40, 40], Pool2d { kernel: [20, 20], padding: [0, 0], ..good }),
    ];
    let mut cases = Vec::new();
    for (name, message, shape, pool) in windows {
        cases.push(case(name, message, move |on| {
            let y = kernels::max_pool2d(ones(shape, on), pool);
            assert_eq!(Some([y.dims()[2], y.dims()[3]]), pool.output_size([shape[2], shape[3]]));
        }));
        cases.push(case(name, message, move |on| drop(kernels::avg_pool2d(ones(shape, on), pool))));
    }
    let adaptive = |x, size| move |on: &(Device, DType)| drop(kernels::adaptive_avg_pool2d(ones(x, on), size));
    cases.extend([
        case("adaptive, as it should be", "", adaptive(x, [3, 9])),
        case("adaptive, no output", "the output", adaptive(x, [0, 2])),
        case("adaptive, no pixels", "x has a size of zero", adaptive([2, 3, 7, 0], [2, 2])),
        case("adaptive, no channels", "x has a size of zero", adaptive([2, 0, 7, 6], [2, 2])),
        case("adaptive, too many outputs", "address space", adaptive(x, [usize::MAX, 2])),
        case("adaptive, an output that overflows", "address space", adaptive(x, [1 << 40, 1 << 40])),
    ]);
    let norm = |x, size, alpha, beta, k| {
        move |on: &(Device, DType)| {
            let y = kernels::local_response_norm(ones(x, on), LocalResponseNorm { size, alpha, beta, k });
            assert_eq!(y.dims(), x);
        }
    };
    cases.extend([
        case("local response norm, as it should be", "", norm(x, 5, 1e-4, 0.75, 2.0)),
        case("local response norm, an even window", "", norm(x, 4, 1e-4, 0.75, 2.0)),
        case("local response norm, a window wider than the channels", "", norm(x, 99, 1e-4, 0.75, 2.0)),
        case("local response norm, an empty window", "no channels", norm(x, 0, 1e-4, 0.75, 2.0)),
        case("local response norm, an endless window", "address space", norm(x, usize::MAX, 1e-4, 0.75, 2.0)),
        case("local response norm, alpha", "alpha", norm(x, 5, f64::NAN, 0.75, 2.0)),
        case("local response norm, beta", "beta", norm(x, 5, 1e-4, f64::INFINITY, 2.0)),
        case("local response norm, k", "k is", norm(x, 5, 1e-4, 0.75, f64::NAN)),
    ]);
    check(&cases);
}

#[test]
fn the_rest_checks_its_arguments() {
    let cat = |shapes: &'static [[usize; 4]]| {
        move |on: &(Device, DType)| {
            let y = kernels::cat(shapes.iter().map(|&shape| ones(shape, on)));
            let [n, _, h, w] = shapes[0];
            assert_eq!(y.dims(), [n, shapes.iter().map(|shape| shape[1]).sum(), h, w]);
        }
    };
    let linear = |x, weight, bias: Option<usize>| {
        move |on: &(Device, DType)| {
            let [x, weight]: [[usize; 2]; 2] = [x, weight];
            for precision in [Precision::F32, Precision::Bf16] {
                let y = kernels::linear(ones(x, on), ones(weight, on), bias.map(|c| ones([c], on)), precision);
                assert_eq!(y.dims(), [x[0], weight[1]]);
            }
        }
    };
    let loss = |logits, targets| {
        move |on: &(Device, DType)| {
            let logits: [usize; 2] = logits;
            assert_eq!(kernels::cross_entropy(ones(logits, on), ones(targets, on)).dims(), [logits[0]]);
        }
    };
    let sgd = Sgd { learning_rate: 0.1, momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 0.1 };
    let step = |gradient, velocity: Option<[usize; 2]>| {
        move |on: &(Device, DType)| {
            kernels::sgd_step(ones([3, 4], on), ones(gradient, on), velocity.map(|shape| ones(shape, on)), sgd);
        }
    };
    check(&[
        case("cat, as it should be", "", cat(&[[2, 3, 4, 5], [2, 1, 4, 5]])),
        case("cat, more than fit into one call", "", cat(&[[2, 3, 4, 5]; 15])),
        case("cat, none", "there are no tensors", |_| drop(kernels::cat([]))),
        case("cat, other images", "tensor 1", cat(&[[2, 3, 4, 5], [1, 3, 4, 5]])),
        case("cat, other heights", "tensor 2", cat(&[[2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 5, 5]])),
        case("cat, other widths", "tensor 1", cat(&[[2, 3, 4, 5], [2, 3, 4, 1]])),
        case("linear, as it should be", "", linear([3, 4], [4, 5], Some(5))),
        case("linear, no rows", "", linear([0, 4], [4, 5], Some(5))),
        case("linear, no inputs", "", linear([3, 0], [0, 5], Some(5))),
        case("linear, no classes", "", linear([3, 4], [4, 0], Some(0))),
        case("linear, a weight of other inputs", "the weight has 5 rows", linear([3, 4], [5, 5], None)),
        case("linear, a transposed weight", "the weight has 5 rows", linear([3, 4], [5, 4], None)),
        case("linear, a short bias", "the bias", linear([3, 4], [4, 5], Some(4))),
        case("linear, a bias for all outputs", "the bias", linear([3, 4], [4, 5], Some(1))),
        case("cross entropy, as it should be", "", loss([3, 4], [3, 4])),
        case("cross entropy, no rows", "", loss([0, 4], [0, 4])),
        case("cross entropy, no classes", "classes", loss([3, 0], [3, 0])),
        case("cross entropy, other targets", "the targets", loss([3, 4], [3, 5])),
        case("cross entropy, targets of one row", "the targets", loss([3, 4], [1, 4])),
        case("sgd, as it should be", "", step([3, 4], Some([3, 4]))),
        case("sgd, a first step", "", step([3, 4], None)),
        case("sgd, another gradient", "the gradient", step([4, 3], None)),
        case("sgd, a gradient of one row", "the gradient", step([1, 4], None)),
        case("sgd, another velocity", "the velocity", step([3, 4], Some([4, 3]))),
        case("fan out of nothing", "", |on| drop(kernels::fan_out::<3>(ones([0, 2, 3, 4], on)))),
        case("backward from, outside of a graph", "not part of an autodiff graph", |on| {
            drop(kernels::backward_from(ones([2, 3], on), ones([2, 3], on)));
        }),
        case("backward from, another shape", "the gradient", |on| {
            drop(kernels::backward_from(ones([2, 3], on), ones([1, 3], on)));
        }),
    ]);
}

/// Sizes of zero that are accepted have gradients, too.
#[test]
fn gradients_of_empty_batches_are_zeros() {
    let device = (Device::flex().autodiff(), DType::F32);
    let sum = |x: &Tensor<4>, loss: Tensor<1>| {
        let gradients = loss.backward();
        x.grad(&gradients).map(|gradient| gradient.sum().into_scalar::<f32>())
    };
    for kernel in [1, 3] {
        for channels in [3, 64] {
            let weight = ones([64, channels, kernel, kernel], &device).require_grad();
            let x = ones([0, channels, 28, 28], &device).require_grad();
            let options = ConvOptions::new([1, 1], [kernel / 2; 2], [1, 1], 1);
            let y = kernels::conv2d(x, weight.clone(), options, Epilogue::default(), Precision::F32);
            assert_eq!(sum(&weight, y.sum()), Some(0.0), "{channels} channels, a kernel of {kernel}");
        }
    }
    let weight = ones([5, 0], &device).require_grad();
    let x = ones([3, 5], &device).require_grad();
    let y = kernels::linear(x.clone(), weight.clone(), None, Precision::F32);
    let gradients = (y.sum() + x.clone().sum()).backward();
    let total = x.grad(&gradients).expect("a gradient").sum().into_scalar::<f32>();
    assert_eq!(total, 15.0, "what no output depends on has no gradient from there");
    assert_eq!(weight.grad(&gradients).expect("a gradient").dims(), [5, 0]);
}

/// A call on bytes, with what its panic must mention; nothing for a call that must succeed.
type Int8Case<'a> = (&'a str, &'a str, Box<dyn Fn() + 'a>);

fn check_int8(cases: &[Int8Case<'_>]) {
    let run = |work: &dyn Fn()| catch_unwind(AssertUnwindSafe(work)).err();
    for (name, message, work) in cases {
        let panic = run(work).map(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default());
        match &panic {
            None => assert!(message.is_empty(), "{name}: no panic"),
            Some(panic) => assert!(!message.is_empty() && panic.contains(message), "{name}: {panic:?}, {message:?}"),
        }
    }
}

#[test]
fn int8_operations_reject_maps_that_do_not_fit() {
    use kernels::int8::{self, Average, Conv2d, Geometry, Map, MapMut, Quantization, Requantize};

    const WINDOWS: Geometry =
        Geometry { kernel: [3; 2], stride: [1; 2], padding: [[1; 2]; 2], dilation: [1; 2], groups: 2 };
    const ONE: Quantization = Quantization { scale: 1.0, zero: 0 };
    let weights = |count: usize, channels: [usize; 2], geometry: Geometry, zeros: usize| {
        Conv2d::new(&vec![1; count], channels, geometry, &vec![0; zeros]).is_some()
    };
    fn map(bytes: &[u8], n: usize, channels: usize) -> Map<'_> {
        Map { data: bytes, n, size: [5, 5], channels, pitch: 10, offset: 1 }
    }
    fn out(bytes: &mut [u8], size: [usize; 2], channels: usize) -> MapMut<'_> {
        MapMut { data: bytes, n: 2, size, channels, pitch: 9, offset: 2 }
    }
    let conv = Conv2d::new(&[1; 6 * 4 * 9], [8, 6], WINDOWS, &[0]).unwrap();
    // Bytes, images, channels of the input; size and channels of the output; scales; channels of the residual.
    let run =
        |bytes: usize, n: usize, channels: usize, size: [usize; 2], outputs: usize, scales: usize, residual: usize| {
            let x = vec![1; bytes];
            let requantize = Requantize {
                scale: &vec![1.0; scales],
                bias: &[0.0; 6],
                residual: (residual > 0).then(|| (Map { size, ..map(&x, n, residual) }, 1.0)),
                low: 0,
            };
            conv.run(map(&x, n, channels), &requantize, out(&mut vec![0; 2 * 5 * 5 * 9], size, outputs));
        };
    let pool = |bytes: usize, size: [usize; 2], geometry: Geometry, channels: usize| {
        let x = vec![1; bytes];
        let mut y = vec![0; 2 * 5 * 5 * 9];
        int8::max_pool2d(map(&x, 2, 6), &geometry, None, out(&mut y, size, channels));
        let average = Average::Windows { geometry, count_padding: true };
        int8::avg_pool2d(map(&x, 2, 6), average, ONE, ONE, out(&mut y, size, channels));
    };
    let ungrouped = Geometry { groups: 1, ..WINDOWS };
    check_int8(&[
        ("weights", "", Box::new(|| assert!(weights(216, [8, 6], WINDOWS, 8)))),
        ("fewer weights", "215 weights, expected 216", Box::new(|| _ = weights(215, [8, 6], WINDOWS, 1))),
        ("groups", "2 groups do not divide", Box::new(|| _ = weights(216, [8, 5], WINDOWS, 1))),
        ("zero points", "3 zero points", Box::new(|| _ = weights(216, [8, 6], WINDOWS, 3))),
        (
            "a size of zero",
            "a size is zero",
            Box::new(|| _ = weights(0, [8, 6], Geometry { stride: [0, 1], ..WINDOWS }, 1)),
        ),
        ("conv", "", Box::new(|| run(500, 2, 8, [5, 5], 6, 6, 6))),
        ("a short map", "499 bytes are too few", Box::new(|| run(499, 2, 8, [5, 5], 6, 6, 0))),
        ("wide channels", "10 channels from 1 on", Box::new(|| run(500, 2, 10, [5, 5], 6, 6, 0))),
        ("other channels", "7 channels, expected 8", Box::new(|| run(500, 2, 7, [5, 5], 6, 6, 0))),
        ("another batch", "an output of", Box::new(|| run(500, 1, 8, [5, 5], 6, 6, 0))),
        ("another size", "an output of", Box::new(|| run(500, 2, 8, [4, 5], 6, 6, 0))),
        ("other outputs", "an output of", Box::new(|| run(500, 2, 8, [5, 5], 5, 6, 0))),
        ("fewer scales", "5 values per channel", Box::new(|| run(500, 2, 8, [5, 5], 6, 5, 0))),
        ("another residual", "a residual of", Box::new(|| run(500, 2, 8, [5, 5], 6, 6, 5))),
        (
            "floats in groups",
            "2 groups",
            Box::new(|| {
                let requantize = Requantize { scale: &[1.0; 6], bias: &[0.0; 6], residual: None, low: 0 };
                conv.run_float(map(&[1; 500], 2, 8), &requantize, &mut [0.0; 300]);
            }),
        ),
        ("pooling", "", Box::new(|| pool(500, [5, 5], ungrouped, 6))),
        ("a pooling of a short map", "too few", Box::new(|| pool(499, [5, 5], ungrouped, 6))),
        ("a pooling to other channels", "become", Box::new(|| pool(500, [5, 5], ungrouped, 5))),
        ("an empty window", "is empty", Box::new(|| pool(500, [5, 5], Geometry { stride: [3; 2], ..ungrouped }, 6))),
        (
            "a dilated window",
            "a dilation",
            Box::new(|| pool(500, [5, 5], Geometry { dilation: [2, 1], ..ungrouped }, 6)),
        ),
        (
            "a conversion to another size",
            "become",
            Box::new(|| {
                int8::convert(map(&[1; 500], 2, 6), None, out(&mut [0; 450], [4, 5], 6));
            }),
        ),
        (
            "a sum of other channels",
            "channels of",
            Box::new(|| {
                let terms = [(map(&[1; 500], 2, 6), ONE), (map(&[1; 500], 2, 5), ONE)];
                int8::add(terms, ONE, 0, out(&mut [0; 450], [5, 5], 6));
            }),
        ),
        (
            "values",
            "",
            Box::new(|| int8::quantize(&[0.0; 300], [150, 25, 5, 1], &[[1.0, 0.0]; 6], out(&mut [0; 450], [5, 5], 6))),
        ),
        (
            "fewer values",
            "299 values are too few",
            Box::new(|| {
                int8::quantize(&[0.0; 299], [150, 25, 5, 1], &[[1.0, 0.0]; 6], out(&mut [0; 450], [5, 5], 6));
            }),
        ),
        (
            "fewer quantizations",
            "5 quantizations",
            Box::new(|| {
                int8::quantize(&[0.0; 300], [150, 25, 5, 1], &[[1.0, 0.0]; 5], out(&mut [0; 450], [5, 5], 6));
            }),
        ),
        (
            "floats of another number",
            "values",
            Box::new(|| int8::dequantize(map(&[1; 500], 2, 6), ONE, &mut [0.0; 299])),
        ),
    ]);
}
