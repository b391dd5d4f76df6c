//! What a launcher tells a process about its group, in environment variables.

use std::env;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// PyTorch's default port.
const PORT: u16 = 29500;

/// A process in its group, as its launcher describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// Number of this process among those on its machine.
    pub local_rank: usize,
    /// Number of processes on this machine.
    pub local_world_size: usize,
    /// Host of rank 0.
    pub master_addr: String,
    /// Port of the store, where the processes find each other.
    pub master_port: u16,
    /// Whether the launcher serves the store. Otherwise, rank 0 does.
    pub launcher_serves_store: bool,
    /// How often the launcher has restarted the group.
    pub restart_count: u64,
}

/// The launcher's variables are incomplete or invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A variable has no valid value.
    #[error("the environment variable {name} is `{value}`, expected {expected}")]
    Invalid {
        /// Name of the variable.
        name: String,
        /// Its value.
        value: String,
        /// A description of valid values.
        expected: String,
    },
    /// A variable is missing.
    #[error("the environment variable {name} is not set, but {given} is; set {name} to {meaning}")]
    Missing {
        /// Name of the variable.
        name: &'static str,
        /// A variable that needs it.
        given: &'static str,
        /// What it must be set to.
        meaning: &'static str,
    },
}

/// The variables with which a launcher tells a process its place.
struct Variables {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    local_world_size: &'static str,
    /// Whether one of rank and size alone is a mistake. Otherwise it has another meaning.
    belong_together: bool,
}

/// In order of precedence: launchers start each other, and the inner one's variables come first.
const LAUNCHERS: [Variables; 4] = [
    // torchrun, Kubernetes operators, and whoever sets them by hand
    Variables {
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world_size: "LOCAL_WORLD_SIZE",
        belong_together: true,
    },
    // mpirun of Open MPI
    Variables {
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
        belong_together: true,
    },
    // mpiexec of MPICH and Intel MPI
    Variables {
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_world_size: "MPI_LOCALNRANKS",
        belong_together: true,
    },
    // srun. Batch scripts have SLURM_PROCID and SLURM_NTASKS too, but not SLURM_STEP_NUM_TASKS.
    Variables {
        rank: "SLURM_PROCID",
        world_size: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_world_size: "",
        belong_together: false,
    },
];

/// Environment variables. An empty one counts as missing.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    fn text(&self, name: &str) -> Option<String> {
        self.0(name).filter(|value| !value.is_empty())
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, LaunchError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| {
            let expected = "a whole number in range".to_owned();
            LaunchError::Invalid { name: name.to_owned(), value, expected }
        })
    }
}

impl Launch {
    /// This process's place, from the variables of torchrun, srun (Slurm), mpirun (Open MPI) or mpiexec (MPICH, Intel
    /// MPI); `None` if it was started without a launcher.
    ///
    /// # Errors
    /// When variables are missing or invalid.
    pub fn from_env() -> Result<Option<Self>, LaunchError> {
        Self::read(&Environment(&|name: &str| env::var(name).ok()))
    }

    fn read(environment: &Environment) -> Result<Option<Self>, LaunchError> {
        for variables in &LAUNCHERS {
            let Variables { rank, world_size, belong_together, .. } = *variables;
            match (environment.number(rank)?, environment.number::<NonZeroUsize>(world_size)?) {
                (Some(rank), Some(world_size)) => {
                    return Self::of_rank(environment, variables, rank, world_size.get()).map(Some);
                }
                (Some(_), None) if belong_together => {
                    return Err(LaunchError::Missing {
                        name: world_size,
                        given: rank,
                        meaning: "the number of processes",
                    });
                }
                (None, Some(_)) if belong_together => {
                    return Err(LaunchError::Missing {
                        name: rank,
                        given: world_size,
                        meaning: "the number of this process, from 0",
                    });
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The launch of a rank; everything else comes from the launcher's `variables`, from Slurm's, or from defaults.
    fn of_rank(
        environment: &Environment,
        variables: &Variables,
        rank: usize,
        world_size: usize,
    ) -> Result<Self, LaunchError> {
        let below = |name: &str, value: usize, limit: usize| {
            let error = || LaunchError::Invalid {
                name: name.to_owned(),
                value: value.to_string(),
                expected: format!("0 to {}", limit - 1),
            };
            (value < limit).then_some(value).ok_or_else(error)
        };
        let local_rank = environment.number(variables.local_rank)?;
        let local_rank = local_rank.or(environment.number("SLURM_LOCALID")?).unwrap_or(0);
        let local_world_size =
            environment.number(variables.local_world_size)?.or_else(|| slurm_local_size(environment));
        let local_world_size = local_world_size.unwrap_or(local_rank + 1).max(1);
        let is_one_machine = local_world_size == world_size;
        let master_addr = environment
            .text("MASTER_ADDR")
            .or_else(|| is_one_machine.then(|| "127.0.0.1".to_owned()))
            .or_else(|| first_host(&environment.text("SLURM_STEP_NODELIST").or(environment.text("SLURM_NODELIST"))?))
            .ok_or(LaunchError::Missing {
                name: "MASTER_ADDR",
                given: variables.rank,
                meaning: "the host of rank 0",
            })?;
        Ok(Self {
            rank: below(variables.rank, rank, world_size)?,
            world_size,
            local_rank: below(variables.local_rank, local_rank, local_world_size)?,
            local_world_size,
            master_addr,
            master_port: match environment.number("MASTER_PORT")? {
                Some(port) => port,
                None => slurm_port(environment)?.unwrap_or(PORT),
            },
            launcher_serves_store: environment.text("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
            restart_count: environment.number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
        })
    }
}

/// Number of processes on this machine under Slurm, from a list such as `2(x3),1`: tasks per node, and how many nodes
/// have as many.
fn slurm_local_size(environment: &Environment) -> Option<usize> {
    let list = environment.text("SLURM_STEP_TASKS_PER_NODE")?;
    let node: usize = environment.text("SLURM_NODEID")?.parse().ok()?;
    let counts = list.split(',').flat_map(|part| {
        let (tasks, nodes) = part.split_once("(x").unwrap_or((part, "1)"));
        let nodes = nodes.trim_end_matches(')').parse().unwrap_or(0);
        std::iter::repeat_n(tasks.parse().ok(), nodes)
    });
    counts.flatten().nth(node)
}

/// A port for the step of a Slurm job. Jobs that share a machine get different ones.
fn slurm_port(environment: &Environment) -> Result<Option<u16>, LaunchError> {
    /// Below the ports that Linux gives to outgoing connections.
    const FIRST: u64 = 10_000;
    const COUNT: u64 = 20_000;
    /// Steps of a job that get different ports.
    const STEPS: u64 = 16;
    let Some(job) = environment.number::<u64>("SLURM_JOB_ID")? else { return Ok(None) };
    let step = environment.number::<u64>("SLURM_STEP_ID")?.unwrap_or(0);
    let port = FIRST + job.wrapping_mul(STEPS).wrapping_add(step % STEPS) % COUNT;
    Ok(Some(u16::try_from(port).expect("it is less than 30,000")))
}

/// The first host of a list of Slurm, such as `gpu[01-04,7],cpu1`.
fn first_host(list: &str) -> Option<String> {
    let (prefix, rest) = list.split_at(list.find(['[', ',']).unwrap_or(list.len()));
    let Some(ranges) = rest.strip_prefix('[') else { return Some(prefix.to_owned()) };
    let (ranges, rest) = ranges.split_once(']')?;
    let number = ranges.split([',', '-']).next()?;
    let suffix = rest.split(',').next()?;
    Some(format!("{prefix}{number}{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>, LaunchError> {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        Launch::read(&Environment(&value))
    }

    /// Rank, world size, local rank, local world size, address, port.
    fn place(variables: &[(&str, &str)]) -> (usize, usize, usize, usize, String, u16) {
        let Launch { rank, world_size, local_rank, local_world_size, master_addr, master_port, .. } =
            read(variables).unwrap().unwrap();
        (rank, world_size, local_rank, local_world_size, master_addr, master_port)
    }

    #[test]
    fn without_a_launcher_there_is_no_group() {
        assert_eq!(read(&[]), Ok(None));
        // An sbatch script, without srun.
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "7")]), Ok(None));
        assert_eq!(read(&[("RANK", ""), ("WORLD_SIZE", "")]), Ok(None));
    }

    #[test]
    fn torchrun_serves_the_store_and_counts_restarts() {
        let launch = read(&[
            ("RANK", "9"),
            ("WORLD_SIZE", "16"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "8"),
            ("MASTER_ADDR", "head"),
            ("MASTER_PORT", "1234"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "3"),
        ]);
        let expected = Launch {
            rank: 9,
            world_size: 16,
            local_rank: 1,
            local_world_size: 8,
            master_addr: "head".to_owned(),
            master_port: 1234,
            launcher_serves_store: true,
            restart_count: 3,
        };
        assert_eq!(launch, Ok(Some(expected)));
    }

    #[test]
    fn mpi_on_one_machine_needs_no_address() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(place(&open_mpi), (1, 2, 1, 2, "127.0.0.1".to_owned(), 29500));
        let mpich = [("PMI_RANK", "2"), ("PMI_SIZE", "3"), ("MPI_LOCALRANKID", "2"), ("MPI_LOCALNRANKS", "3")];
        assert_eq!(place(&mpich), (2, 3, 2, 3, "127.0.0.1".to_owned(), 29500));
        let two_machines = [("PMI_RANK", "2"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "2")];
        let error = read(&two_machines).unwrap_err().to_string();
        assert!(error.contains("MASTER_ADDR is not set, but PMI_RANK is"), "{error}");
    }

    #[test]
    fn srun_gives_the_first_host_and_a_port_of_the_job() {
        let mut variables = vec![
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "7"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
            ("SLURM_STEP_NODELIST", "gpu[03-05],gpu9"),
            ("SLURM_JOB_ID", "123456"),
            ("SLURM_STEP_ID", "2"),
        ];
        assert_eq!(place(&variables), (5, 7, 1, 2, "gpu03".to_owned(), 10_000 + 15_298));
        // mpiexec starts its helpers with srun; the ranks are mpiexec's.
        variables.extend([("PMI_RANK", "0"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "2")]);
        assert_eq!(place(&variables).0, 0);
    }

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, host) in [
            ("a", Some("a")),
            ("a,b", Some("a")),
            ("node[001-004]", Some("node001")),
            ("n[7,9]", Some("n7")),
            ("r[1-2]-ib,b", Some("r1-ib")),
            ("n[1", None),
        ] {
            assert_eq!(first_host(list).as_deref(), host, "{list}");
        }
    }

    #[test]
    fn incomplete_and_invalid_variables_are_errors() {
        for (variables, part) in [
            (vec![("RANK", "0")], "WORLD_SIZE is not set, but RANK is"),
            (vec![("WORLD_SIZE", "4")], "RANK is not set, but WORLD_SIZE is"),
            (vec![("RANK", "x"), ("WORLD_SIZE", "2")], "RANK is `x`, expected a whole number"),
            (vec![("RANK", "0"), ("WORLD_SIZE", "0")], "WORLD_SIZE is `0`, expected a whole number"),
            (vec![("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")], "RANK is `2`, expected 0 to 1"),
            (vec![("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "70000")], "MASTER_ADDR is not set"),
            (vec![("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "70000")], "MASTER_PORT is `70000`"),
        ] {
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
