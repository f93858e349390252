//! `train plan`: what training on many devices would take. The formula is in [`Figures`]; here are its figures and words.

use anyhow::{Result, ensure};
use models::{Architecture, ImageClassifier, NetworkConfig};
use runtime::{backend::BackendSpec, exit::ExitCode, noteln, out, outln, progress::thousands};
use serde::Serialize;
use train::scale::{Estimate, Figures, RATE_IMAGES, Resource};

use crate::cli::{PlanArgs, PlanFormat};

/// Images a second of a training step on two cores, in batches of 8: docs/performance.md's first table.
const MEASURED: [(Architecture, f64); 5] = [
    (Architecture::ResNet18, 24.6),
    (Architecture::ResNet50, 6.97),
    (Architecture::GoogLeNet, 21.4),
    (Architecture::Vgg16, 5.45),
    (Architecture::AlexNet, 45.1),
];

/// The most images a step up to which a rate in proportion lost no accuracy (Goyal et al., 2017, figure 1).
const LARGE_BATCH: u64 = 8192;

/// The share of a step above which a line says what would make the all-reduce less of it.
const NOTABLE: f64 = 0.1;

#[derive(Debug, Serialize)]
struct Plan {
    architecture: Architecture,
    figures: Figures,
    rows: Vec<Estimate>,
}

pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    let figures = figures(args)?;
    for &devices in &args.devices {
        let global_batch = figures.global_batch(devices);
        ensure!(
            global_batch <= figures.images,
            "{} images a step (--devices {devices} with --batch-per-device {}) are more than an epoch's {}: give fewer \
             --devices, a smaller --batch-per-device or more --images",
            thousands(global_batch),
            figures.batch_size,
            thousands(figures.images),
        );
    }
    let rows = args.devices.iter().map(|&devices| figures.estimate(devices)).collect();
    let plan = Plan { architecture: args.architecture, figures, rows };
    match args.format {
        PlanFormat::Text => out!("{}", plan.text())?,
        PlanFormat::Json => outln!("{}", serde_json::to_string_pretty(&plan)?)?,
        PlanFormat::Csv => {
            let mut table = csv::Writer::from_writer(Vec::new());
            for row in &plan.rows {
                table.serialize(row)?;
            }
            out!("{}", String::from_utf8(table.into_inner()?)?)?;
        }
    }
    Ok(ExitCode::Success)
}

fn figures(args: &PlanArgs) -> Result<Figures> {
    // Nothing is computed: parameters are only counted, those of auxiliary classifiers too, which are trained along.
    let mut config = NetworkConfig::new(args.architecture);
    if let Some(classes) = args.classes {
        config = config.with_num_classes(classes as usize);
    }
    let parameters = config.init(&BackendSpec::host()?.device()?).num_parameters() as u64;
    Ok(Figures {
        parameters,
        images_per_s: images_per_s(args)?,
        batch_size: args.batch_size,
        devices_per_host: args.devices_per_host,
        epochs: args.epochs,
        images: args.images,
        validation: args.validation,
        image_kb: args.image_kb,
        cores_per_host: args.cores_per_host,
        decode_per_core: args.decode_per_core,
        disk_mb: args.disk_mb,
        network_gbit: args.network_gbit,
        link_gbit: args.link_gbit,
        latency_us: args.latency_us,
        remote: args.remote,
    })
}

/// The user's figure, or that of two cores, which is told.
fn images_per_s(args: &PlanArgs) -> Result<f64> {
    if let Some(figure) = args.images_per_s {
        return Ok(figure);
    }
    let architecture = args.architecture;
    let measured = MEASURED.iter().find(|(measured, _)| *measured == architecture);
    ensure!(
        measured.is_some(),
        "how fast a device trains {architecture} is not known here: measure it with `train bench {architecture}` and \
         give --images-per-s"
    );
    let figure = measured.map_or(f64::NAN, |(_, figure)| *figure);
    noteln!(
        "a device is taken to be two cores, which train {architecture} at {figure} images/s (docs/performance.md); for \
         yours, measure `train bench {architecture}` and give --images-per-s"
    );
    Ok(figure)
}

impl Plan {
    fn text(&self) -> String {
        let figures = &self.figures;
        let mut text = format!(
            "{}: {} parameters, {:.1} MB of gradients; a device trains {} images/s, {} a step; {} epochs of {} images\n",
            self.architecture,
            thousands(figures.parameters),
            figures.gradient_bytes() / 1e6,
            short(figures.images_per_s),
            figures.batch_size,
            figures.epochs,
            thousands(figures.images),
        );
        text += HEADER;
        for row in &self.rows {
            text += &self::row(row);
        }
        text += "what to set\n";
        for line in self.advice() {
            text += &format!("  {line}\n");
        }
        text
    }

    fn advice(&self) -> Vec<String> {
        let figures = &self.figures;
        let crowd = self.rows.iter().map(|row| figures.local_devices(row.devices)).max().unwrap_or(1);
        let workers = (figures.cores_per_host / crowd).max(1);
        let mut lines = vec![format!(
            "a process for each device, --workers {workers}; --batch-size is \"images/step\", over all of them; --lr-per \
             {RATE_IMAGES} multiplies the rate by \"rate ×\", after a warm-up",
        )];
        for row in &self.rows {
            let devices = format!("{} device{}", row.devices, if row.devices == 1 { "" } else { "s" });
            let remedies = [self.feed(row), self.send_less(row)];
            lines.extend(remedies.into_iter().flatten().map(|remedy| format!("{devices}: {remedy}")));
        }
        let large = self.rows.iter().filter(|row| row.global_batch > LARGE_BATCH).map(|row| row.devices).min();
        lines.extend(large.map(|devices| {
            format!(
                "above {} images a step, here from {devices} devices on, SGD begins to lose accuracy: LAMB (--recipe imagenet-a3), \
                 or smaller batches",
                thousands(LARGE_BATCH),
            )
        }));
        lines
    }

    /// What would bring images as fast as they are wanted, where they come too slowly.
    fn feed(&self, row: &Estimate) -> Option<String> {
        let (figures, devices) = (&self.figures, row.devices);
        let fed_s = figures.fed_step_s(devices);
        match row.limit {
            Resource::Device | Resource::AllReduce => None,
            Resource::Decode => {
                let images = (figures.local_devices(devices) * figures.batch_size) as f64;
                let cores = (images / fed_s / figures.decode_per_core).ceil();
                Some(format!("decoding is the limit; {cores} cores a host would keep up"))
            }
            Resource::Disk => {
                let mb = (figures.image_mb(devices) / fed_s).ceil();
                Some(format!("the disk is the limit; {mb} MB/s would keep up, or memory that holds the images"))
            }
            Resource::Network => {
                let gbit = short(figures.network_gbit_to_keep_up(devices));
                Some(format!(
                    "the network is the limit; {gbit} Gbit/s would keep up, or images on the hosts' own disks"
                ))
            }
        }
    }

    /// What would make the all-reduce less of a step, where it is much and nothing else holds the devices up.
    fn send_less(&self, row: &Estimate) -> Option<String> {
        let matters = match row.limit {
            Resource::Device | Resource::AllReduce => true,
            Resource::Network => row.hosts > 1,
            Resource::Decode | Resource::Disk => false,
        };
        (matters && row.all_reduce_share > NOTABLE).then(|| {
            format!(
                "{:.0} % of a step waits for the all-reduce; a tenth with {} images a device; or a faster {}",
                100.0 * row.all_reduce_share,
                self.figures.batch_for_a_tenth(row.devices),
                if row.hosts > 1 { "network" } else { "link" },
            )
        })
    }
}

const HEADER: &str = "devices hosts images/step rate ×   ms/step images/s efficiency  hours  limit       device \
                      all-reduce decode  disk network\n";

fn row(row: &Estimate) -> String {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    format!(
        "{:>7} {:>5} {:>11} {:>6} {:>9} {:>8} {:>10} {:>6}  {:10}  {:>6} {:>10} {:>6} {:>5} {:>7}\n",
        row.devices,
        row.hosts,
        row.global_batch,
        (100.0 * row.rate_factor).round() / 100.0,
        short(1e3 * row.step_s),
        short(row.images_per_s),
        percent(row.efficiency),
        short(row.hours),
        row.limit,
        percent(row.device_share),
        percent(row.all_reduce_share),
        percent(row.decode_share),
        percent(row.disk_share),
        percent(row.network_share),
    )
}

/// Three digits, and more before the point if need be.
fn short(number: f64) -> String {
    let decimals = match number {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{number:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> String {
        std::fs::read_to_string(format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn the_figures_of_two_cores_are_the_documents() {
        let text = read("docs/performance.md");
        let rows: Vec<&str> =
            text.lines().skip_while(|line| !line.contains("Training step, 8 images")).skip(2).collect();
        let spelt = ["ResNet-18", "ResNet-50", "GoogLeNet", "VGG-16", "AlexNet"];
        for ((architecture, figure), spelt) in MEASURED.iter().zip(spelt) {
            let row = rows.iter().find(|row| row.starts_with(&format!("| {spelt} |"))).unwrap();
            assert_eq!(row.split(" | ").nth(1), Some(figure.to_string().as_str()), "{architecture}: {row}");
        }
        assert!(read("docs/guide/data.md").contains("| **1671** |"), "--decode-per-core is half of another figure now");
    }

    #[test]
    fn numbers_are_as_long_as_they_have_to_be() {
        assert_eq!(
            [0.051, 9.99, 9.999, 25.6, 99.99, 634_339.3].map(short),
            ["0.05", "9.99", "10.0", "25.6", "100", "634339"]
        );
    }
}
