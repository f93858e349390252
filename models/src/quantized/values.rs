//! Tensors of any rank, and the operations of a [`Graph`](crate::Graph) on them in f32.

use burn::tensor::{
    Device, Tensor, TensorData, activation, module,
    ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions},
};
use kernels::{Epilogue, Precision};

use crate::graph::{Op, Size};

/// A tensor of one to five axes.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Values {
    D1(Tensor<1>),
    D2(Tensor<2>),
    D3(Tensor<3>),
    D4(Tensor<4>),
    D5(Tensor<5>),
}

/// Applies an expression to a tensor of any rank, which keeps its rank.
macro_rules! each {
    ($values:expr, $tensor:ident => $result:expr) => {
        match $values {
            Values::D1($tensor) => Values::D1($result),
            Values::D2($tensor) => Values::D2($result),
            Values::D3($tensor) => Values::D3($result),
            Values::D4($tensor) => Values::D4($result),
            Values::D5($tensor) => Values::D5($result),
        }
    };
}

/// Applies an expression to two tensors of one rank.
macro_rules! both {
    ($a:expr, $b:expr, ($x:ident, $y:ident) => $result:expr) => {
        match ($a, $b) {
            (Values::D1($x), Values::D1($y)) => Values::D1($result),
            (Values::D2($x), Values::D2($y)) => Values::D2($result),
            (Values::D3($x), Values::D3($y)) => Values::D3($result),
            (Values::D4($x), Values::D4($y)) => Values::D4($result),
            (Values::D5($x), Values::D5($y)) => Values::D5($result),
            (a, b) => return Err(format!("operands have {} and {} axes", a.dims().len(), b.dims().len())),
        }
    };
}

type Outcome<T> = std::result::Result<T, String>;

impl Values {
    /// A tensor of these values in a shape.
    pub fn new(data: TensorData, device: &Device) -> Outcome<Self> {
        Ok(match data.shape().len() {
            1 => Self::D1(Tensor::from_data(data, device)),
            2 => Self::D2(Tensor::from_data(data, device)),
            3 => Self::D3(Tensor::from_data(data, device)),
            4 => Self::D4(Tensor::from_data(data, device)),
            5 => Self::D5(Tensor::from_data(data, device)),
            axes => return Err(format!("a tensor of {axes} axes is not supported")),
        })
    }

    /// The shape.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::D1(x) => x.dims().to_vec(),
            Self::D2(x) => x.dims().to_vec(),
            Self::D3(x) => x.dims().to_vec(),
            Self::D4(x) => x.dims().to_vec(),
            Self::D5(x) => x.dims().to_vec(),
        }
    }

    /// The values in row-major order.
    pub fn to_vec(&self) -> Outcome<Vec<f32>> {
        let data = match self.clone() {
            Self::D1(x) => x.into_data(),
            Self::D2(x) => x.into_data(),
            Self::D3(x) => x.into_data(),
            Self::D4(x) => x.into_data(),
            Self::D5(x) => x.into_data(),
        };
        data.convert::<f32>().try_into_vec().map_err(|error| format!("{error:?}"))
    }

    /// A feature map.
    pub fn map(&self) -> Outcome<Tensor<4>> {
        match self {
            Self::D4(x) => Ok(x.clone()),
            other => Err(format!("a feature map has 4 axes, not {}", other.dims().len())),
        }
    }

    /// A matrix.
    pub fn matrix(&self) -> Outcome<Tensor<2>> {
        match self {
            Self::D2(x) => Ok(x.clone()),
            other => Err(format!("a matrix has 2 axes, not {}", other.dims().len())),
        }
    }

    fn vector(&self) -> Tensor<1> {
        match self.clone() {
            Self::D1(x) => x,
            Self::D2(x) => x.flatten(0, 1),
            Self::D3(x) => x.flatten(0, 2),
            Self::D4(x) => x.flatten(0, 3),
            Self::D5(x) => x.flatten(0, 4),
        }
    }

    fn reshape(&self, shape: &[usize]) -> Outcome<Self> {
        let flat = self.vector();
        if shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b)) != Some(flat.dims()[0]) {
            return Err(format!("{:?} does not become {shape:?}", self.dims()));
        }
        Ok(match *shape {
            [a] => Self::D1(flat.reshape([a])),
            [a, b] => Self::D2(flat.reshape([a, b])),
            [a, b, c] => Self::D3(flat.reshape([a, b, c])),
            [a, b, c, d] => Self::D4(flat.reshape([a, b, c, d])),
            [a, b, c, d, e] => Self::D5(flat.reshape([a, b, c, d, e])),
            _ => return Err(format!("a tensor of {} axes is not supported", shape.len())),
        })
    }
}

/// The shape of a node's output for `n` images.
pub fn shape_for(shape: &[Size], n: usize) -> Vec<usize> {
    let size = |size: &Size| match size {
        Size::Fixed(size) => *size,
        Size::PerImage(size) => size * n,
    };
    shape.iter().map(size).collect()
}

/// Runs an operation. `shape` is that of the output, which reshaping and constants need.
pub fn run(op: &Op, inputs: &[&Values], shape: &[usize], device: &Device) -> Outcome<Values> {
    let input = || inputs.first().copied().ok_or("an operation without an input");
    let second = || inputs.get(1).copied().ok_or("an operation without a second input");
    Ok(match op {
        Op::Conv2d { stride, padding, dilation, groups } => {
            let options = ConvOptions::new_with_padding(*stride, *padding, *dilation, *groups);
            let bias = inputs.get(2).map(|bias| bias.vector());
            let epilogue = Epilogue { bias, ..Epilogue::default() };
            Values::D4(kernels::conv2d(input()?.map()?, second()?.map()?, options, epilogue, Precision::F32))
        }
        Op::BatchNorm { epsilon } => {
            let [gamma, beta, mean, variance] = match inputs {
                [_, rest @ ..] if rest.len() == 4 => [0, 1, 2, 3].map(|index| rest[index].vector()),
                _ => return Err("a batch normalization has five inputs".into()),
            };
            Values::D4(module::batch_norm(input()?.map()?, gamma, beta, mean, variance, *epsilon))
        }
        Op::MaxPool2d { kernel, stride, padding, dilation, ceil_mode } => {
            let options = MaxPoolOptions::new(*kernel)
                .with_stride(*stride)
                .with_padding(*padding)
                .with_dilation(*dilation)
                .with_ceil_mode(*ceil_mode);
            Values::D4(module::max_pool2d(input()?.map()?, options))
        }
        Op::AvgPool { kernel, stride, padding, count_include_pad, ceil_mode } => match (input()?, &kernel[..]) {
            (Values::D4(x), &[height, width]) => {
                let pair = |list: &[usize]| [list[0], list[1]];
                let options = AvgPoolOptions::new([height, width])
                    .with_stride(pair(stride))
                    .with_padding(pair(padding))
                    .with_count_include_pad(*count_include_pad)
                    .with_ceil_mode(*ceil_mode);
                Values::D4(module::avg_pool2d(x.clone(), options))
            }
            (Values::D3(x), &[length]) => {
                let options = AvgPoolOptions::new([length])
                    .with_stride([stride[0]])
                    .with_padding([padding[0]])
                    .with_count_include_pad(*count_include_pad)
                    .with_ceil_mode(*ceil_mode);
                Values::D3(module::avg_pool1d(x.clone(), options))
            }
            _ => return Err("an average pooling over other axes".into()),
        },
        Op::AdaptiveAvgPool2d { output } => Values::D4(module::adaptive_avg_pool2d(input()?.map()?, *output)),
        Op::Relu => each!(input()?.clone(), x => activation::relu(x)),
        Op::Linear => {
            let bias = inputs.get(2).map(|bias| bias.vector());
            Values::D2(kernels::linear(input()?.matrix()?, second()?.matrix()?, bias, Precision::F32))
        }
        Op::Add => both!(input()?.clone(), second()?.clone(), (a, b) => a + b),
        Op::Mul => both!(input()?.clone(), second()?.clone(), (a, b) => a * b),
        Op::Div => both!(input()?.clone(), second()?.clone(), (a, b) => a / b),
        Op::AddScalar(by) => each!(input()?.clone(), x => x + *by),
        Op::MulScalar(by) => each!(input()?.clone(), x => x * *by),
        Op::PowScalar(by) => each!(input()?.clone(), x => x.powf_scalar(*by)),
        Op::Concat { axis } => {
            let mut joined = input()?.clone();
            for &next in &inputs[1..] {
                joined = both!(joined, next.clone(), (a, b) => Tensor::cat(vec![a, b], *axis));
            }
            joined
        }
        Op::Reshape => input()?.reshape(shape)?,
        Op::Transpose { permutation } => match (input()?.clone(), &permutation[..]) {
            (Values::D2(x), &[a, b]) => Values::D2(x.permute([a, b])),
            (Values::D3(x), &[a, b, c]) => Values::D3(x.permute([a, b, c])),
            (Values::D4(x), &[a, b, c, d]) => Values::D4(x.permute([a, b, c, d])),
            (Values::D5(x), &[a, b, c, d, e]) => Values::D5(x.permute([a, b, c, d, e])),
            _ => return Err("a permutation of other axes".into()),
        },
        Op::Slice { ranges } => {
            let slices: Vec<burn::tensor::Slice> = ranges
                .iter()
                .map(|&(start, end, step)| {
                    burn::tensor::Slice::new(start as isize, end.map(|end| end as isize), step as isize)
                })
                .collect();
            each!(input()?.clone(), x => x.slice(slices.as_slice()))
        }
        Op::Zeros => Values::new(TensorData::zeros::<f32, _>(shape.to_vec()), device)?,
    })
}
