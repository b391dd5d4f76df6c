//! Exponential moving average (EMA) of the weights, which often reaches a higher AP than the last weights.

use tch::Tensor;

use crate::parameters::Parameters;

/// Exponential moving average of trainable parameters and buffers. Frozen parameters do not change.
pub struct Average {
    /// The averaged values.
    pub parameters: Parameters,
    decay: f64,
}

impl Average {
    /// An average with initial values `parameters`. Each update keeps the fraction `decay` of the average.
    pub fn new(parameters: Parameters, decay: f64) -> Self {
        Self { parameters, decay }
    }

    /// Updates the average with `current`, the parameters after `steps` optimizer steps. The decay is at most
    /// (1 + steps) / (10 + steps), so that the random initial values fade quickly.
    pub fn update(&mut self, current: &Parameters, steps: i64) {
        let steps = steps as f64;
        let decay = self.decay.min((1.0 + steps) / (10.0 + steps));
        tch::no_grad(|| {
            let Parameters { trainable, buffers, .. } = &mut self.parameters;
            for (average, current) in [(trainable, &current.trainable), (buffers, &current.buffers)] {
                let _: Tensor = average.lerp_(current, 1.0 - decay);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::Layout;
    use models::{Initial, Parameter, Role};

    fn parameters(value: f32) -> Parameters {
        let parameter = |name: &str, role| Parameter {
            name: name.to_owned(),
            shape: vec![2],
            role,
            initial: Initial::Constant(value),
        };
        let list = [parameter("bn1.weight", Role::Parameter), parameter("bn1.running_mean", Role::Buffer)];
        Parameters::random(&list, Layout::default(), tch::Device::Cpu, 0)
    }

    fn values(parameters: &Parameters) -> Vec<f32> {
        parameters.to_tensors().values().flat_map(|tensor| tensor.iter().copied().collect::<Vec<_>>()).collect()
    }

    #[test]
    fn update_moves_weights_and_buffers_by_one_minus_decay() {
        let mut average = Average::new(parameters(1.0), 0.75);
        average.update(&parameters(2.0), 1000);
        assert_eq!(values(&average.parameters), [1.25; 4]);
        average.update(&parameters(1.25), 1000);
        assert_eq!(values(&average.parameters), [1.25; 4]);
    }

    #[test]
    fn decay_is_lower_in_the_first_steps() {
        let mut average = Average::new(parameters(0.0), 0.999);
        average.update(&parameters(1.0), 0);
        assert!(values(&average.parameters).iter().all(|value| (value - 0.9).abs() < 1e-6));
    }
}
