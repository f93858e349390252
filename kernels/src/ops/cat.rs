//! Concatenation along the channels, and its gradient, slices.
use super::prelude::*;

/// The gradient of a concatenation.
pub trait CatGrad: Backend {
    /// Slices channels of `[n, c, h, w]`.
    fn slice_channels(x: FloatTensor<Self>, first: usize, channels: usize) -> FloatTensor<Self> {
        reference::slice_channels::<Self>(x, first, channels)
    }
}

/// Concatenation along the channels.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait Cat: CatGrad {
    /// Concatenates tensors along their channels.
    fn concat_channels(#[extension_type] maps: TensorList<Self>) -> FloatTensor<Self> {
        Self::float_cat(maps.into_vec(), 1)
    }
}

reference_backends!(CatGrad, Cat);

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn slice_channels<B: Backend>(x: FloatTensor<B>, first: usize, channels: usize) -> FloatTensor<B> {
        let all = Slice::new(0, None, 1);
        let part = Slice::new(first as isize, Some((first + channels) as isize), 1);
        B::float_slice(x, &[all, part, all, all])
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::{buffer_pool::Buffer, cat},
        flex::{bf16_buffer, bf16_map, bf16s, bf16s_mut, channels_last, dims, floats, map, single, widened},
    };
    use ::half::bf16;
    use burn::tensor::DType;

    impl CatGrad for Flex {
        fn slice_channels(x: FlexTensor, first: usize, channels: usize) -> FlexTensor {
            if !single(&[&x]) {
                return reference::slice_channels::<Self>(x, first, channels);
            }
            let x = channels_last(x);
            let [n, c, h, w] = dims(&x);
            let mut out = Buffer::new(n * channels * h * w);
            cat::slice(floats(&x), c, first, channels, &mut out);
            map(out, [n, channels, h, w])
        }
    }

    impl Cat for Flex {
        fn concat_channels(maps: TensorList<Self>) -> FlexTensor {
            let maps = maps.into_vec();
            if maps.iter().all(|map| map.dtype() == DType::BF16) {
                let maps: Vec<FlexTensor> = maps.into_iter().map(channels_last).collect();
                let [n, _, h, w] = dims(&maps[0]);
                let parts: Vec<(&[bf16], usize)> = maps.iter().map(|map| (bf16s(map), dims(map)[1])).collect();
                let channels: usize = parts.iter().map(|&(_, channels)| channels).sum();
                let len = n * h * w * channels;
                let mut out = bf16_buffer(len);
                cat::cat(&parts, n * h * w, bf16s_mut(&mut out, len));
                return bf16_map(out, [n, channels, h, w]);
            }
            let maps: Vec<FlexTensor> = maps.into_iter().map(widened).collect();
            if !single(&maps.iter().collect::<Vec<_>>()) {
                return Self::float_cat(maps, 1);
            }
            let maps: Vec<FlexTensor> = maps.into_iter().map(channels_last).collect();
            let [n, _, h, w] = dims(&maps[0]);
            let parts: Vec<(&[f32], usize)> = maps.iter().map(|map| (floats(map), dims(map)[1])).collect();
            let channels = parts.iter().map(|&(_, channels)| channels).sum();
            let mut out = Buffer::new(n * h * w * channels);
            cat::cat(&parts, n * h * w, &mut out);
            map(out, [n, channels, h, w])
        }
    }
}

/// The state is the number of channels of each tensor.
#[derive(Debug)]
struct JoinBackward;

impl<B: Cat, const N: usize> Backward<B, N> for JoinBackward {
    type State = Vec<usize>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let mut first = 0;
        for (node, channels) in ops.parents.into_iter().zip(ops.state) {
            if let Some(node) = node {
                grads.register::<B>(node.id, B::slice_channels(dy.clone(), first, channels));
            }
            first += channels;
        }
    }
}

impl<B: Cat, C: CheckpointStrategy> Cat for Autodiff<B, C> {
    fn concat_channels(maps: TensorList<Self>) -> Ad<B, C> {
        let maps = maps.into_vec();
        let nodes: Vec<NodeGuard> = maps.iter().map(|map| map.node()).collect();
        let maps: Vec<_> = maps.into_iter().map(|map| map.into_primitive()).collect();
        let channels = maps.iter().map(|map| map.shape()[1]).collect();
        let Some(maps) = TensorList::new(maps) else { unreachable!("they were up to six before") };
        let y = B::concat_channels(maps);
        fn of<B: Cat, C: CheckpointStrategy, const N: usize>(
            nodes: Vec<NodeGuard>,
            y: FloatTensor<B>,
            channels: Vec<usize>,
        ) -> Ad<B, C> {
            match <[NodeGuard; N]>::try_from(nodes) {
                Ok(nodes) => record::<B, C, _, N>(JoinBackward, nodes, y, |_| channels),
                Err(_) => unreachable!("as many nodes as were counted"),
            }
        }
        match nodes.len() {
            1 => of::<B, C, 1>(nodes, y, channels),
            2 => of::<B, C, 2>(nodes, y, channels),
            3 => of::<B, C, 3>(nodes, y, channels),
            4 => of::<B, C, 4>(nodes, y, channels),
            5 => of::<B, C, 5>(nodes, y, channels),
            _ => of::<B, C, 6>(nodes, y, channels),
        }
    }
}
