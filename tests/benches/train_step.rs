//! One training step, forward to optimizer: ResNet-18 and ResNet-50, 2 pictures of 320x320, 80 classes, next to
//! torchvision's RetinaNet when `PEER_PYTHON` names a Python with torch 2.11 and torchvision 0.26.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;
use models::spec::NormKind;
use models::{Anchors, BoundingBox, Matcher};
use ndarray::Array4;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trainer::config::TrainConfig;
use trainer::learner::Learner;
use trainer::loader::Batch;
use trainer::optimizer::OptimizerKind;
use trainer::schedule::{Moment, Patience};
use trainer::targets::{Normalizer, Object, Targets};

const WARM_UP: usize = 2;
const STEPS: usize = 10;
const SIDE: usize = 320;

/// How pictures and kernels lie in memory, on both sides.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    ChannelsFirst,
    ChannelsLast,
}

impl Layout {
    /// What the peer calls it.
    fn name(self) -> &'static str {
        match self {
            Self::ChannelsFirst => "first",
            Self::ChannelsLast => "last",
        }
    }
}

fn main() -> anyhow::Result<()> {
    trainer::memory::keep();
    for depth in [18, 50] {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            bench(depth, layout)?;
        }
    }
    Ok(())
}

fn bench(depth: u32, layout: Layout) -> anyhow::Result<()> {
    let mut ours = ours(depth, layout)?;
    let mut peer = match std::env::var("PEER_PYTHON") {
        Ok(python) => Some(peer(&python, depth, layout)?),
        Err(_) => None,
    };
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
    print!("training step, ResNet-{depth}, 2x3x{SIDE}x{SIDE}, 80 classes, channels {}: {ours:.3} s", layout.name());
    match peer {
        Some(_) => {
            let peer = median(peer_times);
            println!(", torchvision {peer:.3} s, ratio {:.2}", ours / peer);
        }
        None => println!(" (no peer: PEER_PYTHON is not set)"),
    }
    Ok(())
}

fn ours(depth: u32, layout: Layout) -> anyhow::Result<impl FnMut() -> f64> {
    let spec = tests::spec(&format!("resnet{depth}"), NormKind::FrozenBatch, 80);
    let nowhere = "{annotations: unused, pictures: unused}";
    let mut config: TrainConfig = serde_yaml::from_str(&format!("data: {{train: {nowhere}, validation: {nowhere}}}"))?;
    config.optimizer.kind = OptimizerKind::Sgd;
    config.optimizer.learning_rate = 1e-4;
    config.run.channels_last = layout == Layout::ChannelsLast;
    let mut learner = Learner::new(&spec, &config, tch::Device::Cpu)?;
    let anchors = Anchors::new(&spec.anchors, SIDE, SIDE);
    let corners = [[20., 30., 120., 150.], [100., 100., 300., 280.], [200., 40., 260., 90.]];
    let objects: Vec<_> =
        (0..).zip(corners).map(|(class, corners)| Object { class, bounding_box: BoundingBox::from(corners) }).collect();
    let (objects, matcher) = ([objects.clone(), objects], Matcher::default());
    let assign = move || Targets::new(&objects, &anchors, &matcher, &spec.box_coder, Normalizer::Picture);
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let images = Array4::from_shape_simple_fn((2, 3, SIDE, SIDE), || random.random_range(-2.0..2.0));
    let placements = vec![spec.preprocessing.place(320, 320); 2];
    let mut batch = Batch { images, targets: Targets::default(), placements, pictures: vec![0, 1] };
    let at = Moment { step: 500, steps: 1000, epoch: 0, patience: Patience::default() };
    Ok(move || {
        let start = Instant::now();
        // Here as in the peer, though in training threads of their own do this meanwhile.
        batch.targets = assign();
        let step = learner.step(std::slice::from_ref(&batch), &at);
        assert!(step.is_finite());
        start.elapsed().as_secs_f64()
    })
}

fn peer(python: &str, depth: u32, layout: Layout) -> anyhow::Result<impl FnMut() -> anyhow::Result<f64> + use<>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peer/train_step.py");
    let threads = tch::get_num_threads().to_string();
    let mut process = Command::new(python)
        .args([script, &depth.to_string(), &threads, layout.name()])
        .env_remove("GLIBC_TUNABLES")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {python}"))?;
    let mut input = process.stdin.take().context("the peer has an input")?;
    let mut output = BufReader::new(process.stdout.take().context("the peer has an output")?);
    Ok(move || {
        writeln!(input)?;
        let mut line = String::new();
        output.read_line(&mut line)?;
        line.trim().parse().context("the peer ended early")
    })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
