//! Softmax cross entropy against soft targets.

use super::{
    buffer_pool::elements,
    disjoint::{DisjointSlice, part},
    thread_pool::tasks,
};

/// Computes the loss of each row of `logits` `[n, classes]` against `targets` of the same shape: `−Σ targets · log softmax`.
pub fn cross_entropy(logits: &[f32], targets: &[f32], classes: usize, losses: &mut [f32]) {
    let len = elements([losses.len(), classes]);
    assert!([logits.len(), targets.len()] == [len; 2], "a loss for each row of {classes} logits and targets");
    if classes == 0 {
        return losses.fill(0.0);
    }
    let out = DisjointSlice::new(losses);
    rows(logits, targets, classes, |row, logits, targets| {
        let normaliser = log_sum_exp(logits);
        let loss: f64 =
            logits.iter().zip(targets).map(|(&logit, &t)| f64::from(t) * (normaliser - f64::from(logit))).sum();
        // SAFETY: each row belongs to one task.
        unsafe { out.at(row, 1).write(loss as f32) };
    });
}

/// Computes the gradient of the logits from that of each row's loss: `(softmax · Σ targets − targets) · gradient`.
pub fn cross_entropy_backward(logits: &[f32], targets: &[f32], gradients: &[f32], out: &mut [f32]) {
    let Some(classes) = logits.len().checked_div(gradients.len()) else { return };
    assert!([logits.len(), targets.len()] == [out.len(); 2], "a gradient for each logit");
    assert!(logits.len() == classes * gradients.len(), "a gradient for each row");
    let out = DisjointSlice::new(out);
    rows(logits, targets, classes, |row, logits, targets| {
        let normaliser = log_sum_exp(logits);
        let total: f64 = targets.iter().map(|&t| f64::from(t)).sum();
        let gradient = f64::from(gradients[row]);
        // SAFETY: each row belongs to one task.
        let out = unsafe { out.range(row * classes..(row + 1) * classes) };
        for ((out, &logit), &target) in out.iter_mut().zip(logits).zip(targets) {
            let probability = (f64::from(logit) - normaliser).exp();
            *out = ((probability * total - f64::from(target)) * gradient) as f32;
        }
    });
}

fn rows(logits: &[f32], targets: &[f32], classes: usize, work: impl Fn(usize, &[f32], &[f32]) + Sync + Send) {
    let count = logits.len().checked_div(classes).unwrap_or(0);
    let parts = count.div_ceil(8);
    tasks(parts, |index| {
        for row in part(count, parts, index, 1) {
            let range = row * classes..(row + 1) * classes;
            work(row, &logits[range.clone()], &targets[range]);
        }
    });
}

/// Returns `log Σ exp`, without overflow.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}
