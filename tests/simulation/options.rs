//! What `make simulate` takes.

use super::judge::Reason;

const HELP: &str = "\
make simulate ARGS='...':
  --seed N        the first seed; one after the other is used from there on (1)
  --schedules N   how many random schedules (100000)
  --orders N      in place of those: all orders of up to N faults, around each stage of a holder
  --minutes N     stop after so many minutes
  --threads N     run so many at a time (as many as there are processors)
  --only N        the schedule of this seed alone, as a story
  --refuse NAME   do not excuse two at once for this reason: ended-alone, down-after-alone, thawed, unguarded,
                  continued, stepped, socket-gone; may be given several times
  --exceptions    also let happen what the README excepts: a stepped clock, pglock killed together with its guardian
  --mutations     look whether the simulation finds what is put wrong in copies of the source; with --only N, the Nth alone
  --whole         also fail if a pair of stage and event was not met
";

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub schedules: u64,
    pub orders: usize,
    pub minutes: Option<u64>,
    pub threads: Option<usize>,
    pub only: Option<u64>,
    pub refused: Vec<Reason>,
    pub exceptions: bool,
    pub mutations: bool,
    pub whole: bool,
}

impl Options {
    /// Reads them.
    ///
    /// # Errors
    /// What is wrong with them, or the help.
    pub fn read<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut options = Self {
            seed: 1,
            schedules: 100_000,
            orders: 0,
            minutes: None,
            threads: None,
            only: None,
            refused: Vec::new(),
            exceptions: false,
            mutations: false,
            whole: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut number = || {
                let value = words.next().unwrap_or_default();
                let number = value.parse::<u64>();
                number.map_err(|_| format!("{word} wants a number, not {value:?}"))
            };
            match word {
                "--seed" => options.seed = number()?,
                "--schedules" => options.schedules = number()?,
                "--orders" => options.orders = number()? as usize,
                "--minutes" => options.minutes = Some(number()?),
                "--threads" => options.threads = Some(number()? as usize),
                "--only" => options.only = Some(number()?),
                "--refuse" => {
                    let name = words.next().unwrap_or_default();
                    let reason = Reason::ALL.into_iter().find(|reason| reason.name() == name);
                    let reason = reason.ok_or_else(|| format!("there is no {name:?} to refuse"))?;
                    options.refused.push(reason);
                }
                "--exceptions" => options.exceptions = true,
                "--mutations" => options.mutations = true,
                "--whole" => options.whole = true,
                "--help" => return Err(HELP.to_owned()),
                _ => return Err(format!("{word:?} is unknown\n{HELP}")),
            }
        }
        Ok(options)
    }
}
