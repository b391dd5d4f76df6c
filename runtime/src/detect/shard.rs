//! Shards: a part of the images for each job of an array.

use std::env;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// One of several jobs, which share the images: image `k` of the list goes to job `k` modulo their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    /// Index of the job, from 0.
    index: usize,
    /// Number of jobs.
    count: NonZeroUsize,
}

impl Shard {
    /// Whether the image at `position` in the list, from 0, is in this shard; without a shard, all are.
    pub(super) fn contains_in(shard: Option<Self>, position: usize) -> bool {
        shard.is_none_or(|Self { index, count }| position % count == index)
    }

    fn new(index: usize, count: usize) -> Result<Self, String> {
        let count = NonZeroUsize::new(count).filter(|count| index < count.get());
        let count = count.ok_or("expected I/N with I from 0 to N - 1, for example 0/8")?;
        Ok(Self { index, count })
    }

    /// The shard of this job; `count` is the number of jobs if the scheduler does not say it.
    fn of_job(count: Option<usize>, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str| {
            let parse = |text: String| text.parse().map_err(|_| format!("{name} is `{text}`, expected a number"));
            variable(name).map(parse).transpose()
        };
        if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
            let first: usize = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
            let step: usize = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1);
            let tasks = number("SLURM_ARRAY_TASK_COUNT")?.or(count);
            let count = tasks.ok_or("SLURM_ARRAY_TASK_COUNT is not set; use auto/N with the number of tasks")?;
            let index = id.checked_sub(first).ok_or("SLURM_ARRAY_TASK_ID is below SLURM_ARRAY_TASK_MIN")?;
            return Self::new(index / step.max(1), count);
        }
        let index = number("JOB_COMPLETION_INDEX")?;
        let index = index.ok_or("neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set; use I/N")?;
        Self::new(index, count.ok_or("Kubernetes does not tell the number of completions; use auto/N")?)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let of_job = |count| Self::of_job(count, |name| env::var(name).ok());
        let number =
            |text: &str| text.parse().map_err(|_| format!("`{text}` is not a number; expected I/N, auto or auto/N"));
        match text.split_once('/') {
            None if text == "auto" => of_job(None),
            Some(("auto", count)) => of_job(Some(number(count)?)),
            Some((index, count)) => Self::new(number(index)?, number(count)?),
            None => Err("expected I/N, auto or auto/N".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_all_images() {
        let shards: Vec<Shard> = (0..3).map(|index| format!("{index}/3").parse().unwrap()).collect();
        for position in 0..10 {
            let owners: Vec<_> = (0..3).filter(|index| Shard::contains_in(Some(shards[*index]), position)).collect();
            assert_eq!(owners, [position % 3]);
        }
        for text in ["3/3", "0/0", "-1/3", "1", "a/b", "1/2/3", "", "auto/x"] {
            text.parse::<Shard>().unwrap_err();
        }
    }

    #[test]
    fn schedulers_tell_the_shard() {
        let shard = |count, variables: &[(&str, &str)]| {
            let variable =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            Shard::of_job(count, variable).map(|shard| (shard.index, shard.count.get()))
        };
        let slurm = |id| [("SLURM_ARRAY_TASK_ID", id), ("SLURM_ARRAY_TASK_MIN", "1"), ("SLURM_ARRAY_TASK_COUNT", "4")];
        assert_eq!([shard(None, &slurm("1")), shard(None, &slurm("4"))], [Ok((0, 4)), Ok((3, 4))]);
        let stepped = [&slurm("5")[..], &[("SLURM_ARRAY_TASK_STEP", "2")]].concat();
        assert_eq!(shard(None, &stepped), Ok((2, 4)));
        assert_eq!(shard(Some(8), &[("JOB_COMPLETION_INDEX", "7")]), Ok((7, 8)));
        for (count, variables) in [
            (None, &[("JOB_COMPLETION_INDEX", "7")][..]),
            (Some(7), &[("JOB_COMPLETION_INDEX", "7")]),
            (Some(7), &[]),
            (None, &slurm("0")),
            (None, &slurm("5")),
            (None, &slurm("x")),
        ] {
            shard(count, variables).unwrap_err();
        }
    }
}
