//! The formula of `train plan`: from figures of one device to a step on many.
//!
//! Data-parallel training: every device has the whole network and a batch of its own, and the gradients are averaged
//! before each update. Images are read and decoded while the devices compute, so the slowest of these sets the step:
//! a device with the part of the all-reduce that it waits for, decoding, the disk, the network.

use std::fmt;

use serde::Serialize;

/// A training step is three passes, one forward and two of its size backward; docs/performance.md counts so too.
const PASSES: f64 = 3.0;

/// Bytes of each parameter's gradient as it is sent: gradients are summed in f32.
const GRADIENT_BYTES: f64 = 4.0;

/// The images a step for which recipes give their rate (`imagenet-classic`), and from which it grows in proportion
/// (Goyal et al., 2017, "Accurate, Large Minibatch SGD").
pub const RATE_IMAGES: u64 = 256;

/// What a step is made of. Hosts are alike, and devices too.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Trainable parameters of the network.
    pub parameters: u64,
    /// Images a second of one device in training, with images at hand and nobody to wait for.
    pub images_per_s: f64,
    /// Images a step of one device.
    pub batch_size: u64,
    /// Devices in a host, where there are that many.
    pub devices_per_host: u64,
    /// Passes over the training images.
    pub epochs: u64,
    /// Training images.
    pub images: u64,
    /// Validation images, seen once an epoch.
    pub validation: u64,
    /// Thousands of bytes of an encoded image, on average.
    pub image_kb: f64,
    /// Cores of a host that decode.
    pub cores_per_host: u64,
    /// Images a second that a core decodes and augments.
    pub decode_per_core: f64,
    /// Millions of bytes a second from a host's disk.
    pub disk_mb: f64,
    /// Thousands of millions of bits a second into a host, and as many out of it at the same time.
    pub network_gbit: f64,
    /// The same for a device and the others of its host.
    pub link_gbit: f64,
    /// Microseconds from one device to the next in a ring, whatever the size.
    pub latency_us: f64,
    /// Whether images come by the network rather than from a disk in the host.
    pub remote: bool,
}

/// What a step can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// The devices' own arithmetic.
    Device,
    /// The gradients' average.
    AllReduce,
    /// JPEG decoding and augmentation on the host's cores.
    Decode,
    /// The host's disk.
    Disk,
    /// The host's network, which brings the images and carries the all-reduce between hosts.
    Network,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Resource::Device => "device",
            Resource::AllReduce => "all-reduce",
            Resource::Decode => "decode",
            Resource::Disk => "disk",
            Resource::Network => "network",
        })
    }
}

/// A number of devices, and what the formula makes of it. Flat, a row of a table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// All devices.
    pub devices: u64,
    /// The hosts that they fill; where they do not, the fullest host counts.
    pub hosts: u64,
    /// Images a step of all devices.
    pub global_batch: u64,
    /// What a rate that was found for [`RATE_IMAGES`] is multiplied by.
    pub rate_factor: f64,
    /// Seconds a step.
    pub step_s: f64,
    /// Training images a second of all devices.
    pub images_per_s: f64,
    /// Images a second over what as many single devices would have.
    pub efficiency: f64,
    /// Hours of all epochs, training and validation.
    pub hours: f64,
    /// What sets the step.
    pub limit: Resource,
    /// The fraction of a step in which the device computes. A device and the all-reduce that it waits for come one after
    /// the other; the other resources work at the same time.
    pub device_share: f64,
    /// The fraction in which the device waits for the all-reduce.
    pub all_reduce_share: f64,
    /// The fraction in which the cores decode.
    pub decode_share: f64,
    /// The fraction in which the disk reads.
    pub disk_share: f64,
    /// The fraction in which the network is in use.
    pub network_share: f64,
}

impl Figures {
    /// Seconds in which `ranks` average `bytes` in a ring of `bytes_per_s`: each sends 2 (N − 1) / N of the bytes in
    /// 2 (N − 1) messages, and no algorithm sends less (Patarasu and Yuan, 2009, "Bandwidth optimal all-reduce
    /// algorithms for clusters of workstations").
    fn ring_s(&self, ranks: u64, bytes: f64, bytes_per_s: f64) -> f64 {
        let others = ranks as f64 - 1.0;
        2.0 * others / ranks as f64 * bytes / bytes_per_s + 2.0 * others * self.latency_us * 1e-6
    }

    /// Bytes of the gradients of a step, on each device.
    pub fn gradient_bytes(&self) -> f64 {
        self.parameters as f64 * GRADIENT_BYTES
    }

    /// Images a step of all devices.
    pub fn global_batch(&self, devices: u64) -> u64 {
        devices.saturating_mul(self.batch_size)
    }

    fn hosts(&self, devices: u64) -> u64 {
        devices.div_ceil(self.devices_per_host)
    }

    /// Devices in the fullest host.
    pub fn local_devices(&self, devices: u64) -> u64 {
        devices.min(self.devices_per_host)
    }

    fn network_bytes_per_s(&self) -> f64 {
        self.network_gbit * 1e9 / 8.0
    }

    /// Seconds of an all-reduce: a ring in each host, then between hosts. There each device's share of the gradients has
    /// a ring of its own, and all of a host's rings share its network, so that the host sends the whole once.
    pub fn all_reduce_s(&self, devices: u64) -> f64 {
        let bytes = self.gradient_bytes();
        self.ring_s(self.local_devices(devices), bytes, self.link_gbit * 1e9 / 8.0)
            + self.ring_s(self.hosts(devices), bytes, self.network_bytes_per_s())
    }

    /// Seconds of a device's own arithmetic in a step.
    fn compute_s(&self) -> f64 {
        self.batch_size as f64 / self.images_per_s
    }

    /// Seconds of a step if images came from nowhere.
    pub fn fed_step_s(&self, devices: u64) -> f64 {
        self.compute_s() + self.all_reduce_s(devices)
    }

    /// Millions of bytes of a step's images, in the fullest host.
    pub fn image_mb(&self, devices: u64) -> f64 {
        (self.local_devices(devices) * self.batch_size) as f64 * self.image_kb / 1e3
    }

    /// Millions of bytes that a host's network takes in a step, the all-reduce's and the images'.
    pub fn network_mb(&self, devices: u64) -> f64 {
        let hosts = self.hosts(devices) as f64;
        let ring = 2.0 * (hosts - 1.0) / hosts * self.gradient_bytes() / 1e6;
        ring + if self.remote { self.image_mb(devices) } else { 0.0 }
    }

    /// Images a second that cores, disk and network of the hosts bring.
    fn fed_images_per_s(&self, devices: u64) -> f64 {
        let decoded = self.cores_per_host as f64 * self.decode_per_core;
        let bytes_per_s = if self.remote { self.network_bytes_per_s() } else { self.disk_mb * 1e6 };
        self.hosts(devices) as f64 * decoded.min(bytes_per_s / (self.image_kb * 1e3))
    }

    /// Gbit/s of a host's network with which it would not be the limit. The all-reduce gets faster with it, so that it
    /// is found step by step, from below.
    pub fn network_gbit_to_keep_up(&self, devices: u64) -> f64 {
        (0..1000).fold(self.network_gbit, |network_gbit, _| {
            self.network_mb(devices) * 8e-3 / Figures { network_gbit, ..*self }.fed_step_s(devices)
        })
    }

    /// Images a device a step with which the all-reduce would be a tenth of the step.
    pub fn batch_for_a_tenth(&self, devices: u64) -> f64 {
        // The all-reduce is then a ninth of the arithmetic.
        (9.0 * self.all_reduce_s(devices) * self.images_per_s).ceil()
    }

    /// What `devices` make of it, at least one.
    pub fn estimate(&self, devices: u64) -> Estimate {
        let (compute_s, all_reduce_s) = (self.compute_s(), self.all_reduce_s(devices));
        let host_batch = (self.local_devices(devices) * self.batch_size) as f64;
        let decode_s = host_batch / (self.cores_per_host as f64 * self.decode_per_core);
        let disk_s = if self.remote { 0.0 } else { self.image_mb(devices) / self.disk_mb };
        let network_s = self.network_mb(devices) * 1e6 / self.network_bytes_per_s();

        let own = if compute_s >= all_reduce_s { Resource::Device } else { Resource::AllReduce };
        let (mut limit, mut step_s) = (own, compute_s + all_reduce_s);
        for (resource, seconds) in
            [(Resource::Decode, decode_s), (Resource::Disk, disk_s), (Resource::Network, network_s)]
        {
            // The all-reduce has counted its network already; only more than that is the network's limit.
            if seconds > step_s * (1.0 + 1e-9) {
                (limit, step_s) = (resource, seconds);
            }
        }

        let global_batch = self.global_batch(devices);
        let images_per_s = global_batch as f64 / step_s;
        let perfect = devices as f64 * self.images_per_s;
        // Whole steps; what is left of an epoch is dropped, as the loader does.
        let steps = (self.images / global_batch) as f64;
        let validation_s = self.validation as f64 / (PASSES * perfect).min(self.fed_images_per_s(devices));
        Estimate {
            devices,
            hosts: self.hosts(devices),
            global_batch,
            rate_factor: global_batch as f64 / RATE_IMAGES as f64,
            step_s,
            images_per_s,
            efficiency: images_per_s / perfect,
            hours: self.epochs as f64 * (steps * step_s + validation_s) / 3600.0,
            limit,
            device_share: compute_s / step_s,
            all_reduce_share: all_reduce_s / step_s,
            decode_share: decode_s / step_s,
            disk_share: disk_s / step_s,
            network_share: network_s / step_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Round numbers: 100 MB of gradients, a tenth of a second a step, hosts of 4.
    fn figures() -> Figures {
        Figures {
            parameters: 25_000_000,
            images_per_s: 1000.0,
            batch_size: 100,
            devices_per_host: 4,
            epochs: 10,
            images: 720_000,
            validation: 0,
            image_kb: 100.0,
            cores_per_host: 10,
            decode_per_core: 1000.0,
            disk_mb: 1000.0,
            network_gbit: 8.0,
            link_gbit: 80.0,
            latency_us: 0.0,
            remote: false,
        }
    }

    fn assert_close(value: f64, expected: f64) {
        assert!((value - expected).abs() <= 1e-9 * expected.abs(), "{value}, expected {expected}");
    }

    #[test]
    fn one_device_sends_nothing_and_is_its_own_limit() {
        let one = figures().estimate(1);
        assert_eq!((one.hosts, one.limit, one.all_reduce_share), (1, Resource::Device, 0.0));
        assert_close(one.step_s, 0.1);
        assert_close(one.efficiency, 1.0);
        // 10 × 720,000 images at 1000 a second.
        assert_close(one.hours, 2.0);
        assert_close(one.decode_share, 0.1);
        assert_close(one.disk_share, 0.1);
    }

    #[test]
    fn a_ring_sends_twice_the_others_share_of_the_gradients() {
        // 2 · 3/4 · 100 MB at 10 GB/s.
        assert_close(figures().all_reduce_s(4), 0.015);
        // And between two hosts 2 · 1/2 · 100 MB at 1 GB/s.
        assert_close(figures().all_reduce_s(8), 0.115);
        // Six messages in a host, two between two hosts.
        let slow = Figures { latency_us: 1000.0, ..figures() };
        assert_close(slow.all_reduce_s(8), 0.115 + 0.008);
        // However many the hosts, a ring never sends twice the gradients.
        assert!(figures().all_reduce_s(4000) < 0.015 + 0.2);
    }

    #[test]
    fn a_step_is_the_arithmetic_and_then_the_all_reduce() {
        let eight = figures().estimate(8);
        assert_eq!(eight.limit, Resource::AllReduce);
        assert_close(eight.step_s, 0.215);
        assert_close(eight.device_share + eight.all_reduce_share, 1.0);
    }

    /// Images that come by a network that is too slow for them.
    fn network_of(devices: u64) -> (Figures, u64) {
        (Figures { remote: true, network_gbit: 1.0, ..figures() }, devices)
    }

    #[test]
    fn the_slowest_resource_sets_the_step() {
        // A host of 4 wants 4 × 1000 images a second, as long as nothing is sent.
        let fast = Figures { link_gbit: 1e9, ..figures() };
        let decode = Figures { cores_per_host: 2, ..fast }.estimate(4);
        assert_eq!(decode.limit, Resource::Decode);
        assert_close(decode.images_per_s, 2000.0);
        assert_close(decode.decode_share, 1.0);
        let disk = Figures { disk_mb: 100.0, ..fast }.estimate(4);
        assert_eq!(disk.limit, Resource::Disk);
        assert_close(disk.images_per_s, 1000.0);
        let network = Figures { remote: true, network_gbit: 1.6, disk_mb: 1e-3, ..fast }.estimate(4);
        assert_eq!((network.limit, network.disk_share), (Resource::Network, 0.0));
        assert_close(network.images_per_s, 2000.0);
        // Between hosts the all-reduce takes its part of the network: 100 MB beside 40 MB of images.
        let both = Figures { remote: true, network_gbit: 8.0, images_per_s: 10_000.0, ..fast };
        assert_eq!(both.estimate(8).limit, Resource::Network);
        assert_close(both.estimate(8).step_s, 0.14);
        for slow in [network_of(8), network_of(4)] {
            assert_eq!(slow.0.estimate(slow.1).limit, Resource::Network);
            let network_gbit = slow.0.network_gbit_to_keep_up(slow.1);
            assert!(
                Figures { network_gbit: 1.001 * network_gbit, ..slow.0 }.estimate(slow.1).limit != Resource::Network
            );
            assert_eq!(
                Figures { network_gbit: 0.99 * network_gbit, ..slow.0 }.estimate(slow.1).limit,
                Resource::Network
            );
        }
        // Without images on it, it never is the limit beside the all-reduce.
        assert_eq!(Figures { remote: false, disk_mb: 1e9, ..both }.estimate(8).limit, Resource::AllReduce);
    }

    #[test]
    fn validation_is_three_times_as_fast_unless_the_images_come_too_slowly() {
        let with = Figures { validation: 300_000, ..figures() };
        assert_close(with.estimate(1).hours - figures().estimate(1).hours, 10.0 * 100.0 / 3600.0);
        let slow = Figures { decode_per_core: 150.0, ..with };
        let hours = slow.estimate(1).hours - Figures { validation: 0, ..slow }.estimate(1).hours;
        assert_close(hours, 10.0 * 200.0 / 3600.0);
    }

    #[test]
    fn the_batch_for_a_tenth_makes_the_all_reduce_a_tenth() {
        let figures = Figures { disk_mb: 1e9, cores_per_host: 1000, ..figures() };
        let batch_size = figures.batch_for_a_tenth(8) as u64;
        let share = Figures { batch_size, ..figures }.estimate(8).all_reduce_share;
        assert!((0.09..=0.1 + 1e-9).contains(&share), "{batch_size} images, {share}");
    }

    #[test]
    fn epochs_are_whole_steps_and_hosts_are_filled_one_by_one() {
        let odd = Figures { images: 1_050, epochs: 1, ..figures() }.estimate(6);
        assert_eq!((odd.hosts, odd.global_batch), (2, 600));
        assert_close(odd.hours, odd.step_s / 3600.0);
        assert_close(odd.rate_factor, 600.0 / 256.0);
    }
}
