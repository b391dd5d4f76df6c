//! Textures: the color at every point of a surface.

use std::f32::consts::TAU;

use rand::{Rng, RngExt};

/// Red, green and blue in [0, 1].
pub(super) type Color = [f32; 3];

/// A uniformly random color.
pub(super) fn random_color(rng: &mut impl Rng) -> Color {
    std::array::from_fn(|_| rng.random_range(0.0..1.0))
}

/// A saturated color with a hue within `spread` of `hue`, in turns of the color wheel.
pub(super) fn color_near(hue: f32, spread: f32, rng: &mut impl Rng) -> Color {
    let hue = hue + rng.random_range(-spread..spread);
    let saturation = rng.random_range(0.6..1.0);
    let value = rng.random_range(0.35..1.0);
    // Red, green and blue each rise and fall once per turn, a third of a turn apart.
    [0.0, 1.0 / 3.0, 2.0 / 3.0].map(|peak| {
        let distance = ((hue - peak + 0.5).rem_euclid(1.0) - 0.5).abs();
        let level = (2.0 - 6.0 * distance).clamp(0.0, 1.0);
        value * (1.0 - saturation * (1.0 - level))
    })
}

/// Euclidean distance of two colors.
pub(super) fn contrast(a: Color, b: Color) -> f32 {
    std::array::from_fn::<f32, 3, _>(|i| (a[i] - b[i]).powi(2)).iter().sum::<f32>().sqrt()
}

/// Interpolates from `a` (at 0) to `b` (at 1).
pub(super) fn mix(a: Color, b: Color, fraction: f32) -> Color {
    std::array::from_fn(|i| a[i] + fraction * (b[i] - a[i]))
}

/// A mix of two colors, which a pattern and noise determine at each point.
#[derive(Clone, Debug)]
pub(super) struct Texture {
    colors: [Color; 2],
    /// 0 and 1: waves, 2: stripes, 3: checks.
    pattern: usize,
    /// Direction of the pattern: sine and cosine.
    direction: (f32, f32),
    /// Period of the pattern, in pixels.
    period: f32,
    noise_seed: u32,
    /// Weight of the noise, from 0 to 1; the pattern has the rest.
    roughness: f32,
}

impl Texture {
    /// A random texture. Its second color differs from `first` by up to `depth` per channel.
    pub(super) fn random(first: Color, depth: f32, rng: &mut impl Rng) -> Self {
        let direction = rng.random_range(0.0..TAU).sin_cos();
        let second = first.map(|channel| (channel + rng.random_range(-depth..depth)).clamp(0.0, 1.0));
        let (pattern, period) = (rng.random_range(0..4), 12.0 * rng.random_range(0f32..4.0).exp2());
        let (noise_seed, roughness) = (rng.random(), rng.random_range(0.2..0.9));
        Self { colors: [first, second], pattern, direction, period, noise_seed, roughness }
    }

    /// The color at a point.
    pub(super) fn at(&self, x: f32, y: f32) -> Color {
        let (sine, cosine) = self.direction;
        let turns = [cosine * x + sine * y, cosine * y - sine * x].map(|length| length / self.period);
        let odd = turns.map(|turns| turns.rem_euclid(1.0) < 0.5);
        let pattern = match self.pattern {
            0 | 1 => 0.5 + 0.5 * (TAU * turns[0]).sin(),
            2 => f32::from(odd[0]),
            _ => f32::from(odd[0] != odd[1]),
        };
        mix(self.colors[0], self.colors[1], pattern + self.roughness * (noise(x, y, self.noise_seed) - pattern))
    }
}

/// Smooth value noise in [0, 1], determined by the seed: interpolated random values on grids, the finer the weaker.
fn noise(x: f32, y: f32, seed: u32) -> f32 {
    // Side of each grid's cells in pixels, and the grid's weight.
    const OCTAVES: [(f32, f32); 5] = [(64.0, 0.4), (32.0, 0.25), (16.0, 0.15), (8.0, 0.12), (3.0, 0.08)];
    let smooth = |(x, y): (f32, f32), seed| {
        let (column, row) = (x.floor(), y.floor());
        let ease = |t: f32| t * t * (3.0 - 2.0 * t);
        let lerp = |a: f32, b: f32, t: f32| a + t * (b - a);
        let value = |i: i32, j: i32| grid_value([column as i32 + i, row as i32 + j], seed);
        let across = |j: i32| lerp(value(0, j), value(1, j), ease(x - column));
        lerp(across(0), across(1), ease(y - row))
    };
    OCTAVES.iter().zip(seed..).map(|(&(side, weight), seed)| weight * smooth((x / side, y / side), seed)).sum()
}

/// A pseudorandom value in [0, 1): a hash of the cell and the seed. <https://github.com/skeeto/hash-prospector>
fn grid_value(cell: [i32; 2], seed: u32) -> f32 {
    let hash = cell.into_iter().fold(seed, |hash, part| {
        let hash = (hash ^ part as u32).wrapping_add(0x9e37_79b9);
        let hash = (hash ^ (hash >> 16)).wrapping_mul(0x21f0_aaad);
        let hash = (hash ^ (hash >> 15)).wrapping_mul(0x735a_2d97);
        hash ^ (hash >> 15)
    });
    (hash >> 8) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn texture_colors_lie_between_its_two_colors() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for _ in 0..50 {
            let texture = Texture::random(random_color(&mut rng), 0.3, &mut rng);
            for point in 0..400 {
                let color = texture.at((point % 20) as f32 * 7.3 - 20.0, (point / 20) as f32 * 9.1 - 20.0);
                for i in 0..3 {
                    let [low, high] = [f32::min as fn(f32, f32) -> f32, f32::max]
                        .map(|end| end(texture.colors[0][i], texture.colors[1][i]));
                    assert!((low - 1e-5..=high + 1e-5).contains(&color[i]), "{color:?} in {texture:?}");
                }
            }
        }
    }

    #[test]
    fn noise_is_smooth() {
        for point in 0..1000 {
            let (x, y) = (point as f32 * 0.37, point as f32 * 0.11);
            assert!((noise(x + 0.01, y, 7) - noise(x, y, 7)).abs() < 0.01);
        }
    }
}
