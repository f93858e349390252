//! Two processes, played by threads.

use std::sync::{Barrier, Mutex};

use kernels::AllReduce;

/// The sum over two threads that both call it.
pub fn sum() -> AllReduce {
    let (barrier, sums) = (Barrier::new(2), Mutex::new(Vec::<f64>::new()));
    AllReduce::new(move |values: &mut [f64]| {
        {
            let mut sums = sums.lock().expect("not poisoned");
            sums.resize(values.len(), 0.0);
            sums.iter_mut().zip(&*values).for_each(|(sum, value)| *sum += value);
        }
        barrier.wait();
        values.copy_from_slice(&sums.lock().expect("not poisoned"));
        if barrier.wait().is_leader() {
            sums.lock().expect("not poisoned").clear();
        }
        barrier.wait();
    })
}

/// What each of the two comes to.
pub fn run<T: Send>(first: impl FnOnce() -> T + Send, second: impl FnOnce() -> T + Send) -> (T, T) {
    std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(first), scope.spawn(second));
        (first.join().expect("no panic"), second.join().expect("no panic"))
    })
}
