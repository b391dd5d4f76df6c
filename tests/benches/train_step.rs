//! Time of one training step, from forward pass to optimizer: ResNet-18 and ResNet-50, 80 classes, float32 and bfloat16, on
//! an idle machine; and next to busy programs. When `PEER_PYTHON` names a Python with torch 2.11 and torchvision 0.26, also
//! measures torchvision's RetinaNet.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Instant;

use anyhow::Context;
use models::spec::NormKind;
use models::{Anchors, BoundingBox, Matcher, ModelSpec};
use ndarray::Array4;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tests::{Peer, median};
use trainer::config::TrainConfig;
use trainer::loader::{Batch, BatchImages};
use trainer::optimizer::OptimizerKind;
use trainer::overrides::Overrides;
use trainer::precision::Precision;
use trainer::schedule::{Patience, SchedulePosition};
use trainer::targets::{Normalizer, Object, Targets};
use trainer::training_model::TrainingModel;

const WARM_UP: usize = 2;
const STEPS: usize = 10;
/// Image side that the objects' coordinates below refer to.
const SIDE: usize = 320;

/// Memory format of images and convolution weights, in both implementations.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    ChannelsFirst,
    ChannelsLast,
}

impl Layout {
    /// Name on the peer's command line.
    fn name(self) -> &'static str {
        match self {
            Self::ChannelsFirst => "first",
            Self::ChannelsLast => "last",
        }
    }
}

/// What both implementations train: a ResNet of this depth, on `count` images of `side` x `side`.
#[derive(Clone, Copy)]
struct Case {
    depth: u32,
    layout: Layout,
    precision: Precision,
    count: usize,
    side: usize,
}

impl Case {
    fn name(&self) -> String {
        let Self { depth, layout, precision, count, side } = self;
        format!("ResNet-{depth}, {count}x3x{side}x{side}, {precision}, channels {}", layout.name())
    }
}

fn main() -> anyhow::Result<()> {
    trainer::memory::restart_with_huge_pages();
    let [first, last] = [Layout::ChannelsFirst, Layout::ChannelsLast];
    let [float32, bfloat16] = [Precision::Float32, Precision::Bfloat16];
    for (depth, side) in [(18, SIDE), (50, SIDE), (50, 2 * SIDE)] {
        for (layout, precision) in [(first, float32), (last, float32), (last, bfloat16)] {
            bench(Case { depth, layout, precision, count: 2, side })?;
        }
    }
    bench_with_neighbors("shapes.yaml, 8x3x96x96", shapes()?, None)?;
    for (depth, count, side) in [(18, 8, 96), (18, 2, SIDE), (50, 2, SIDE)] {
        let case = Case { depth, layout: first, precision: float32, count, side };
        let mut peer = peer_of(case)?;
        let peer = peer.as_mut().map(|peer| peer as &mut dyn FnMut() -> anyhow::Result<f64>);
        bench_with_neighbors(&case.name(), ours(case)?, peer)?;
    }
    Ok(())
}

/// Processes that each keep one core busy; killed on drop.
struct Neighbors(Vec<Child>);

impl Neighbors {
    fn start(count: usize) -> anyhow::Result<Self> {
        let busy = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn();
        Ok(Self((0..count).map(|_| busy()).collect::<Result<_, _>>()?))
    }
}

impl Drop for Neighbors {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Prints the time of a step next to 0, 1 and 2 busy programs. Each implementation runs all its steps in a row.
fn bench_with_neighbors(
    name: &str,
    mut ours: impl FnMut() -> f64,
    mut peer: Option<&mut dyn FnMut() -> anyhow::Result<f64>>,
) -> anyhow::Result<()> {
    let mut alone = None;
    for count in 0..=2 {
        let _neighbors = Neighbors::start(count)?;
        let our = steady(|| Ok(ours()))?;
        let relative_speed = *alone.get_or_insert(our) / our;
        print!("training step, {name}, {count} busy programs: {our:.3} s, {relative_speed:.2} of the speed without");
        match &mut peer {
            Some(peer) => {
                let peer = steady(peer)?;
                println!(", torchvision {peer:.3} s, {:.2} times ours", peer / our);
            }
            None => println!(),
        }
    }
    Ok(())
}

/// Mean time of a step over ten seconds, after two seconds of warm-up.
fn steady(mut step: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    let mut pass = |seconds: f64| {
        let (mut steps, mut sum) = (0, 0.0);
        while steps < 3 || sum < seconds {
            sum += step()?;
            steps += 1;
        }
        anyhow::Ok(sum / f64::from(steps))
    };
    pass(2.0)?;
    pass(10.0)
}

fn bench(case: Case) -> anyhow::Result<()> {
    let mut ours = ours(case)?;
    let mut peer = peer_of(case)?;
    let (mut our_times, mut peer_times) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP + STEPS {
        let our_time = ours();
        let peer_time = peer.as_mut().map(|peer| peer()).transpose()?;
        if step >= WARM_UP {
            our_times.push(our_time);
            peer_times.extend(peer_time);
        }
    }
    let ours = median(our_times);
    print!("training step, {}: {ours:.3} s", case.name());
    match peer {
        Some(_) => {
            let peer = median(peer_times);
            println!(", torchvision {peer:.3} s, ours / torchvision {:.2}", ours / peer);
        }
        None => println!(" (torchvision not measured: PEER_PYTHON is not set)"),
    }
    Ok(())
}

fn ours(case: Case) -> anyhow::Result<impl FnMut() -> f64 + use<>> {
    let Case { depth, layout, precision, count, side } = case;
    let spec = tests::spec(&format!("resnet{depth}"), NormKind::FrozenBatch, 80);
    let no_data = "{annotations: unused, images: unused}";
    let mut config: TrainConfig = serde_yaml::from_str(&format!("data: {{train: {no_data}, validation: {no_data}}}"))?;
    config.optimizer.kind = OptimizerKind::Sgd;
    config.optimizer.learning_rate = 1e-4;
    config.run.channels_last = layout == Layout::ChannelsLast;
    config.run.precision = precision;
    steps(&spec, &config, count, side)
}

/// Training steps of the demo's configuration.
fn shapes() -> anyhow::Result<impl FnMut() -> f64> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../trainer/configs/shapes.yaml");
    let config = TrainConfig::read(Path::new(path), None, &Overrides::default())?;
    let classes = tests::spec("resnet18", NormKind::Group, 5).classes;
    steps(&ModelSpec { classes, ..config.model.clone() }, &config, config.run.batch_size.images(), 96)
}

/// Training steps on `count` images of noise; each call runs one and returns its time in seconds.
fn steps(
    spec: &ModelSpec,
    config: &TrainConfig,
    count: usize,
    side: usize,
) -> anyhow::Result<impl FnMut() -> f64 + use<>> {
    let (spec, config) = (spec.clone(), config.clone());
    let mut model = TrainingModel::new(&spec, &config, tch::Device::Cpu)?;
    let anchors = Anchors::new(&spec.anchors, side, side);
    let scale = side as f32 / SIDE as f32;
    let corners = [[20., 30., 120., 150.], [100., 100., 300., 280.], [200., 40., 260., 90.]];
    let object = |(class_index, corners): (usize, [f32; 4])| Object {
        class_index,
        bounding_box: BoundingBox::from(corners.map(|corner| corner * scale)),
    };
    let objects: Vec<_> = (0..).zip(corners).map(object).collect();
    let (objects, matcher) = (vec![objects; count], Matcher::default());
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let images = Array4::from_shape_simple_fn((count, 3, side, side), || random.random_range(-2.0..2.0));
    let placements = vec![spec.preprocessing.place(side as u32, side as u32); count];
    let assign = move || Targets::new(&objects, &anchors, &matcher, &spec.box_coder, Normalizer::Image);
    let images = BatchImages::Normalized(images);
    let mut batch = Batch::new(images, Targets::default(), placements, (0..count).collect());
    let at = SchedulePosition { step: 500, steps: 1000, epoch: 0, patience: Patience::default() };
    Ok(move || {
        let start = Instant::now();
        // Included since the peer does it too; in real training, worker threads do it in parallel.
        batch.targets = assign();
        let step = model.step(std::slice::from_ref(&batch), &at).expect("a training step succeeds");
        assert!(step.is_finite());
        start.elapsed().as_secs_f64()
    })
}

/// Training steps of torchvision if `PEER_PYTHON` is set.
fn peer_of(case: Case) -> anyhow::Result<Option<impl FnMut() -> anyhow::Result<f64> + use<>>> {
    std::env::var("PEER_PYTHON").ok().map(|python| peer(&python, case)).transpose()
}

fn peer(python: &str, case: Case) -> anyhow::Result<impl FnMut() -> anyhow::Result<f64> + use<>> {
    let Case { depth, layout, precision, count, side } = case;
    let [depth, threads] = [depth.to_string(), tch::get_num_threads().to_string()];
    let [count, side, precision] = [count.to_string(), side.to_string(), precision.to_string()];
    let arguments = [depth.as_str(), &threads, layout.name(), &precision, &count, &side].map(Path::new);
    let mut peer = Peer::start(python, "train_step.py", &arguments)?;
    Ok(move || peer.request(&Value::Null)?.as_f64().context("the peer printed no number"))
}
