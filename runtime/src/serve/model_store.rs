//! The models that are served: opening, replacing and closing them while requests arrive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Error, Result, anyhow};
use hyper::StatusCode;
use runtime::progress;
use runtime::protocol::RequestError;
use serde_json::{Value, json};

use super::repository::{ModelFile, ModelFiles, Repository};
use super::version::ModelVersion;

/// Opens a version of a model and warms it up.
pub(super) type Open = dyn Fn(&str, u64, &ModelFile) -> Result<ModelVersion> + Send + Sync;

/// The models that are served.
pub(super) struct ModelStore {
    repository: Repository,
    open: Box<Open>,
    models: RwLock<BTreeMap<String, Model>>,
    /// Held while models are opened, so that no two threads open the same.
    opening: Mutex<()>,
}

#[derive(Default)]
struct Model {
    /// The version that gets requests.
    serving: Option<Serving>,
    /// What is known of files that do not serve, by version. One may be a newer file of the version that serves.
    others: BTreeMap<u64, (ModelFile, State)>,
    /// Whether it was unloaded on request, and is to stay so.
    is_unloaded: bool,
    /// How often it was unloaded. A version that was being opened meanwhile does not serve.
    unloads: u64,
}

struct Serving {
    number: u64,
    file: ModelFile,
    version: Arc<ModelVersion>,
}

/// Why a file does not serve.
enum State {
    Loading,
    Unavailable(String),
}

impl State {
    /// State and reason in the index.
    fn entry(&self) -> (&str, &str) {
        match self {
            Self::Loading => ("LOADING", ""),
            Self::Unavailable(reason) => ("UNAVAILABLE", reason),
        }
    }
}

/// What is to be done with a version.
enum Next {
    Open,
    /// Goes on with the next lower one.
    Skip,
    /// Neither this nor a lower one is opened.
    Stop,
}

impl Model {
    fn next(&self, number: u64, file: &ModelFile, retry: Retry) -> Next {
        match (&self.serving, self.others.get(&number).filter(|(known, _)| known == file)) {
            // A lower version does not replace a higher one whose file has vanished.
            (Some(serving), _) if serving.number > number => Next::Stop,
            (Some(serving), _) if serving.number == number && serving.file == *file => Next::Stop,
            (_, Some((_, State::Unavailable(_)))) if retry == Retry::Changed => Next::Skip,
            _ => Next::Open,
        }
    }
}

/// Which versions are opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// Those whose files have changed.
    Changed,
    /// Also those that failed before.
    Failed,
    /// Also those that failed before, of a model that may be unloaded.
    Requested,
}

/// What has become of the versions of a model.
#[derive(Default)]
struct Loaded {
    /// The errors of those that failed.
    errors: Vec<Error>,
    /// Whether one was opened and serves.
    has_opened: bool,
}

impl ModelStore {
    pub(super) fn new(repository: Repository, open: Box<Open>) -> Self {
        Self { repository, open, models: RwLock::default(), opening: Mutex::new(()) }
    }

    /// Opens the highest version of every model that does not serve it already; if it fails, the next lower one that is
    /// higher than the one that serves. A version that serves goes on until a higher one is warmed up. Models and versions
    /// whose files have vanished stay. Returns the errors of the versions that failed.
    pub(super) fn load_all(&self, retry: Retry) -> Result<Vec<Error>> {
        let found = self.scan()?;
        let mut models = self.write();
        for name in found.keys() {
            models.entry(name.clone()).or_default();
        }
        drop(models);
        Ok(found.iter().flat_map(|(name, versions)| self.load_versions(name, versions, retry).errors).collect())
    }

    /// Opens the highest version of a model that can be opened, also if it was unloaded or has failed before. It is an error
    /// if no version was opened though one failed, and if the model does not serve afterwards.
    pub(super) fn load(&self, name: &str) -> Result<(), RequestError> {
        let failed = |error| RequestError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"));
        let found = self.scan().map_err(failed)?;
        let versions = found.get(name).ok_or_else(|| RequestError::not_found(format!("there is no model `{name}`")))?;
        let Loaded { errors, has_opened } = self.load_versions(name, versions, Retry::Requested);
        errors.iter().for_each(|error| progress::error(format_args!("{error:#}")));
        match errors.into_iter().next() {
            Some(error) if !has_opened => Err(failed(error)),
            _ if self.serving_number(name).is_some() => Ok(()),
            _ => {
                let message = "was unloaded, or its files were removed, while it was opened; load it again";
                Err(RequestError::unavailable(format!("model `{name}` {message}")))
            }
        }
    }

    /// Closes a model. Requests in progress are answered.
    pub(super) fn unload(&self, name: &str) -> Result<(), RequestError> {
        let mut models = self.write();
        let Some(model) = models.get_mut(name) else { return Err(Self::unknown(&models, name)) };
        model.is_unloaded = true;
        model.unloads += 1;
        if let Some(Serving { number, .. }) = model.serving.take() {
            progress::say(format_args!("unloaded model `{name}` version {number}"));
        }
        Ok(())
    }

    /// Scans the repository. Models that have vanished and do not serve are forgotten.
    fn scan(&self) -> Result<ModelFiles> {
        let found = self.repository.scan()?;
        self.write().retain(|name, model| model.serving.is_some() || found.contains_key(name));
        Ok(found)
    }

    /// Opens the highest of these versions that can be opened, unless it or a higher one serves.
    fn load_versions(&self, name: &str, versions: &BTreeMap<u64, ModelFile>, retry: Retry) -> Loaded {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut loaded = Loaded::default();
        let unloads = {
            let mut models = self.write();
            let model = models.entry(name.to_owned()).or_default();
            if model.is_unloaded && retry != Retry::Requested {
                return loaded;
            }
            // What is known of versions that have vanished is of no use any more.
            model.others.retain(|number, _| versions.contains_key(number));
            model.unloads
        };
        for (number, file) in versions.iter().rev() {
            // A scan forgets models whose folders have vanished.
            let Some(next) = self.read().get(name).map(|model| model.next(*number, file, retry)) else { break };
            match next {
                Next::Stop => break,
                Next::Skip => continue,
                Next::Open => {}
            }
            self.set(name, *number, file, State::Loading);
            match (self.open)(name, *number, file) {
                Ok(version) => {
                    loaded.has_opened = self.replace(name, *number, file, version, unloads);
                    break;
                }
                Err(error) => {
                    let serving = self.serving_number(name);
                    let serves_on = serving.map_or(String::new(), |serving| format!("; version {serving} serves on"));
                    let error = anyhow!("model `{name}` version {number} cannot be opened: {error:#}{serves_on}");
                    self.set(name, *number, file, State::Unavailable(error.to_string()));
                    loaded.errors.push(error);
                }
            }
        }
        loaded
    }

    /// Lets a version that is open serve instead of the previous one, unless the model was unloaded more than `unloads`
    /// times by now. Returns whether it serves.
    fn replace(&self, name: &str, number: u64, file: &ModelFile, version: ModelVersion, unloads: u64) -> bool {
        let [provider, _] = version.backend.provider();
        let mut models = self.write();
        let model = models.entry(name.to_owned()).or_default();
        model.others.remove(&number);
        if model.unloads != unloads {
            drop(models);
            drop(version);
            progress::say(format_args!("model `{name}` version {number} was unloaded while it was opened"));
            return false;
        }
        let previous = model.serving.replace(Serving { number, file: file.clone(), version: Arc::new(version) });
        model.is_unloaded = false;
        drop(models);
        // Waits for no request: its workers end by themselves.
        drop(previous);
        progress::say(format_args!("ready: model `{name}` version {number} on {provider}"));
        true
    }

    fn serving_number(&self, name: &str) -> Option<u64> {
        Some(self.read().get(name)?.serving.as_ref()?.number)
    }

    fn set(&self, name: &str, number: u64, file: &ModelFile, state: State) {
        let mut models = self.write();
        let model = models.entry(name.to_owned()).or_default();
        model.others.insert(number, (file.clone(), state));
    }

    /// The version that serves, if it is the given one.
    pub(super) fn get(&self, name: &str, version: Option<&str>) -> Result<Arc<ModelVersion>, RequestError> {
        let models = self.read();
        let model = models.get(name).ok_or_else(|| Self::unknown(&models, name))?;
        let unavailable = |number: u64, state: &State| match state {
            State::Unavailable(reason) => RequestError::unavailable(reason),
            State::Loading => {
                RequestError::unavailable(format!("model `{name}` version {number} is loading; try again"))
            }
        };
        match (version, &model.serving) {
            (None, Some(serving)) => Ok(Arc::clone(&serving.version)),
            (Some(version), Some(serving)) if version == serving.number.to_string() => Ok(Arc::clone(&serving.version)),
            (None, None) if model.is_unloaded => {
                Err(RequestError::unavailable(format!("model `{name}` is unloaded; load it again")))
            }
            (None, None) => Err(model.others.iter().next_back().map_or_else(
                || RequestError::unavailable(format!("model `{name}` is loading; try again")),
                |(number, (_, state))| unavailable(*number, state),
            )),
            (Some(version), _) => {
                let known = version.parse().ok().and_then(|number: u64| model.others.get_key_value(&number));
                Err(known.map_or_else(
                    || RequestError::not_found(format!("model `{name}` has no version `{version}` here")),
                    |(number, (_, state))| unavailable(*number, state),
                ))
            }
        }
    }

    /// The model that a short request means: the named one, or the only one.
    pub(super) fn get_or_only(&self, name: Option<&str>) -> Result<Arc<ModelVersion>, RequestError> {
        if let Some(name) = name {
            return self.get(name, None);
        }
        let models = self.read();
        let of = |serves: bool| models.iter().filter(move |(_, model)| model.serving.is_some() == serves);
        // What does not serve, such as a new model that is broken, changes nothing for the one that does.
        let serves = of(true).next().is_some();
        let names: Vec<String> = of(serves).map(|(name, _)| name.clone()).collect();
        drop(models);
        match &names[..] {
            [] => Err(RequestError::unavailable("the model is loading; try again")),
            [name] => self.get(name, None),
            names => {
                let message = format!("the server has several models; choose one of {} with ?model=", names.join(", "));
                Err(RequestError::bad(message))
            }
        }
    }

    /// Whether models serve, and the engines of all that do work. A new model that is being opened or broken changes nothing.
    pub(super) fn is_ready(&self) -> bool {
        let serving = self.serving();
        !serving.is_empty() && serving.iter().all(|version| version.is_ready())
    }

    /// All versions that serve.
    pub(super) fn serving(&self) -> Vec<Arc<ModelVersion>> {
        let models = self.read();
        models.values().filter_map(|model| model.serving.as_ref()).map(|serving| Arc::clone(&serving.version)).collect()
    }

    /// The response to `POST /v2/repository/index`.
    pub(super) fn index(&self, is_ready_only: bool) -> Value {
        let models = self.read();
        let mut entries = Vec::new();
        for (name, model) in models.iter() {
            let mut versions: BTreeMap<_, _> =
                model.others.iter().map(|(number, (_, state))| (*number, state.entry())).collect();
            versions.extend(model.serving.as_ref().map(|serving| (serving.number, ("READY", ""))));
            if versions.is_empty() {
                let (state, reason) =
                    if model.is_unloaded { ("UNAVAILABLE", "unloaded") } else { State::Loading.entry() };
                entries.push(json!({"name": name, "state": state, "reason": reason}));
            }
            for (number, (state, reason)) in versions {
                entries.push(json!({"name": name, "version": number.to_string(), "state": state, "reason": reason}));
            }
        }
        entries.retain(|entry| !is_ready_only || entry["state"] == "READY");
        Value::from(entries)
    }

    /// Why versions of models failed that are not unloaded and do not serve.
    pub(super) fn failures(&self) -> Vec<String> {
        let models = self.read();
        let failed = models.values().filter(|model| !model.is_unloaded && model.serving.is_none());
        let states = failed.flat_map(|model| model.others.values()).map(|(_, state)| state);
        let reasons = states.filter_map(|state| match state {
            State::Unavailable(reason) => Some(reason.clone()),
            State::Loading => None,
        });
        reasons.collect()
    }

    fn unknown(known: &BTreeMap<String, Model>, name: &str) -> RequestError {
        if known.is_empty() {
            return RequestError::unavailable("the models are loading; try again");
        }
        let names: Vec<_> = known.keys().map(|name| format!("`{name}`")).collect();
        RequestError::not_found(format!(
            "there is no model `{name}`; there are {}",
            models::dataset::format_list(&names)
        ))
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Model>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Model>> {
        self.models.write().unwrap_or_else(PoisonError::into_inner)
    }
}
