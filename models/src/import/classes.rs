//! The classes of other projects' outputs.

use super::error::ImportError;
use super::hints::{Background, Hints, Labels};
use super::kind::Kind;
use crate::spec::Class;

/// Ids and names of COCO's 80 classes.
const COCO: &str = include_str!("../../specs/classes/coco.txt");

/// Indices and names of the 264 Open Images classes of MLPerf.
const MLPERF: &str = include_str!("../../specs/classes/mlperf.txt");

/// Number of torchvision's outputs for COCO: one for each id from 0 to 90, of which 80 are classes.
const TORCHVISION_COCO: usize = 91;

/// The outputs per anchor.
pub(super) struct Outputs {
    /// Their number in the file.
    pub(super) all: usize,
    /// Those that belong to a class: their indices, and the classes.
    pub(super) classes: Vec<(usize, Class)>,
    /// Where the classes come from.
    pub(super) source: ClassSource,
}

/// Where the classes of imported weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassSource {
    /// The user's list.
    Listed,
    /// Labels in the file, or beside it: their place.
    Labels(String),
    /// Published weights have that many outputs.
    Published,
    /// Nobody names them; they have the numbers of their outputs.
    Numbered,
}

/// The classes of `all` outputs per anchor, at least one.
pub(super) fn outputs(kind: Kind, all: usize, hints: &Hints) -> Result<Outputs, ImportError> {
    let published = published(kind, all);
    if let Some(listed) = &hints.classes {
        let first = first_of_listed(kind, all, listed.len(), hints.background)?;
        let classes = (first..).zip(listed.iter().cloned()).collect();
        return Ok(Outputs { all, classes, source: ClassSource::Listed });
    }
    if let Some(labels) = &hints.labels {
        check(labels, all, hints.background)?;
        // Published weights have COCO's ids, which labels lack.
        let same = published
            .as_ref()
            .is_some_and(|classes| classes.iter().map(|(row, class)| (row, &class.name)).eq(&labels.names));
        let named = labels.names.iter().map(|(row, name)| (*row, Class { id: *row as i64, name: name.clone() }));
        let classes = published.filter(|_| same).unwrap_or_else(|| named.collect());
        return Ok(Outputs { all, classes, source: ClassSource::Labels(labels.place.clone()) });
    }
    let first = match (hints.background, &published) {
        (None, Some(classes)) => return Ok(Outputs { all, classes: classes.clone(), source: ClassSource::Published }),
        (Some(background), _) => background.first_class(),
        // The only output cannot be a background.
        (None, None) if kind.may_have_background() && all > 1 => return Err(ImportError::Background { outputs: all }),
        (None, None) => 0,
    };
    if let Some(classes) = published.filter(|classes| classes.first().is_some_and(|(row, _)| *row == first)) {
        return Ok(Outputs { all, classes, source: ClassSource::Published });
    }
    let classes = (first..all).map(|row| (row, Class { id: row as i64, name: format!("class {row}") })).collect();
    Ok(Outputs { all, classes, source: ClassSource::Numbered })
}

/// The classes of published weights with that many outputs, and the indices of these.
fn published(kind: Kind, all: usize) -> Option<Vec<(usize, Class)>> {
    match (kind, all) {
        // The index of an output is its COCO id; ten ids are unused, and output 0 is the background.
        (kind, TORCHVISION_COCO) if kind.may_have_background() => {
            Some(parse(COCO).into_iter().map(|class| (class.id as usize, class)).collect())
        }
        (Kind::Mlperf, 264) => Some((0..).zip(parse(MLPERF)).collect()),
        (Kind::Mlperf, _) => None,
        (kind, 80) if !kind.may_have_background() => Some((0..).zip(parse(COCO)).collect()),
        _ => None,
    }
}

/// The output of the first of `listed` classes.
fn first_of_listed(
    kind: Kind,
    all: usize,
    listed: usize,
    background: Option<Background>,
) -> Result<usize, ImportError> {
    let first = match background {
        Some(background) => background.first_class(),
        None => usize::from(kind.may_have_background() && listed + 1 == all),
    };
    if first + listed != all {
        let background = background == Some(Background::First);
        return Err(ImportError::Classes { outputs: all - usize::from(background), background, listed });
    }
    Ok(first)
}

/// Checks that labels name every output, or every output but a background.
fn check(labels: &Labels, all: usize, background: Option<Background>) -> Result<(), ImportError> {
    let name_from = |first: usize| labels.names.keys().copied().eq(first..all);
    let valid = match background {
        Some(background) => name_from(background.first_class()),
        None => name_from(0) || name_from(1),
    };
    if valid && !labels.names.is_empty() {
        return Ok(());
    }
    let found: Vec<_> = labels.names.keys().take(20).map(usize::to_string).collect();
    let more = if labels.names.len() > found.len() { ", ..." } else { "" };
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") + more };
    Err(ImportError::Labels { place: labels.place.clone(), found, outputs: all })
}

/// Parses lines of an id, a tab and a name.
fn parse(text: &str) -> Vec<Class> {
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    lines.filter_map(|(id, name)| Some(Class { id: id.parse().ok()?, name: name.to_owned() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: Kind, all: usize, hints: &Hints) -> Vec<(usize, i64, String)> {
        let outputs = outputs(kind, all, hints).unwrap();
        outputs.classes.into_iter().map(|(row, class)| (row, class.id, class.name)).collect()
    }

    fn error(kind: Kind, all: usize, hints: &Hints) -> String {
        outputs(kind, all, hints).err().unwrap().to_string()
    }

    fn listed(names: &[&str]) -> Hints {
        let classes = names.iter().map(|name| Class { id: 7, name: (*name).to_owned() }).collect();
        Hints { classes: Some(classes), ..Hints::default() }
    }

    fn labeled(names: &[(usize, &str)]) -> Hints {
        let names = names.iter().map(|(row, name)| (*row, (*name).to_owned())).collect();
        Hints { labels: Some(Labels { names, place: "label_dict".to_owned() }), ..Hints::default() }
    }

    fn with(background: Background, hints: Hints) -> Hints {
        Hints { background: Some(background), ..hints }
    }

    #[test]
    fn outputs_of_published_weights_get_class_names() {
        let torchvision = named(Kind::TorchvisionV2, 91, &Hints::default());
        assert_eq!(torchvision.len(), 80);
        assert_eq!(torchvision[0], (1, 1, "person".to_owned()));
        assert_eq!(torchvision[79], (90, 90, "toothbrush".to_owned()));
        assert!(torchvision.iter().all(|(row, id, _)| *row as i64 == *id));
        for kind in [Kind::Yhenon, Kind::Detectron2, Kind::Mmdetection, Kind::Odtk] {
            let named = named(kind, 80, &Hints::default());
            assert_eq!((named.len(), &named[79]), (80, &(79, 90, "toothbrush".to_owned())));
        }
        let mlperf = named(Kind::Mlperf, 264, &Hints::default());
        assert_eq!((mlperf.len(), &mlperf[0]), (264, &(0, 0, "Airplane".to_owned())));
        assert_eq!(mlperf[263].1, 263);
    }

    #[test]
    fn background_is_asked_for_where_names_and_shapes_do_not_tell() {
        let class = |row: usize| (row, row as i64, format!("class {row}"));
        assert_eq!(
            error(Kind::TorchvisionV1, 3, &Hints::default()),
            "it has 3 outputs per anchor: 3 classes with labels from 0, or 2 with labels from 1 and a background that was \
             never trained; the file does not say which"
        );
        let first = with(Background::First, Hints::default());
        assert_eq!(named(Kind::TorchvisionV1, 3, &first), [class(1), class(2)]);
        let none = with(Background::None, Hints::default());
        assert_eq!(named(Kind::TorchvisionV2, 3, &none), [class(0), class(1), class(2)]);
        // All of the 91, if the user insists.
        assert_eq!(named(Kind::TorchvisionV1, 91, &none).len(), 91);
        assert_eq!(named(Kind::TorchvisionV1, 91, &first).len(), 80);
        // The only output, and the outputs of projects whose labels start at 0.
        assert_eq!(named(Kind::TorchvisionV1, 1, &Hints::default()), [class(0)]);
        assert_eq!(named(Kind::Yhenon, 2, &Hints::default()), [class(0), class(1)]);
        assert_eq!(named(Kind::Detectron2, 2, &first), [class(1)]);
        assert!(named(Kind::TorchvisionV1, 1, &first).is_empty());
    }

    #[test]
    fn lists_of_classes_decide_by_their_length() {
        let rows =
            |kind, all, hints: &Hints| -> Vec<_> { named(kind, all, hints).into_iter().map(|row| row.0).collect() };
        let two = || listed(&["cell", "platelet"]);
        assert_eq!(rows(Kind::TorchvisionV1, 2, &two()), [0, 1]);
        assert_eq!(rows(Kind::TorchvisionV1, 3, &two()), [1, 2]);
        assert_eq!(rows(Kind::Yhenon, 2, &two()), [0, 1]);
        assert_eq!(error(Kind::Yhenon, 3, &two()), "it has 3 outputs per anchor, but 2 classes are listed");
        let wrong = with(Background::First, two());
        assert_eq!(
            error(Kind::TorchvisionV1, 2, &wrong),
            "it has 1 outputs besides the background, but 2 classes are listed"
        );
        assert!(error(Kind::TorchvisionV1, 91, &two()).contains("91 outputs"));
    }

    #[test]
    fn labels_of_the_file_name_every_output_or_all_but_a_background() {
        let tree = labeled(&[(0, "Tree")]);
        assert_eq!(named(Kind::TorchvisionV1, 1, &tree), [(0, 0, "Tree".to_owned())]);
        let two = labeled(&[(0, "Alive"), (1, "Dead")]);
        assert_eq!(named(Kind::TorchvisionV1, 2, &two)[1], (1, 1, "Dead".to_owned()));
        let from_one = labeled(&[(1, "Alive"), (2, "Dead")]);
        assert_eq!(named(Kind::TorchvisionV1, 3, &from_one)[0], (1, 1, "Alive".to_owned()));
        assert_eq!(
            error(Kind::TorchvisionV1, 3, &two),
            "its `label_dict` names the outputs 0, 1, but it has 3 per anchor; expected 0 to 2"
        );
        assert!(error(Kind::TorchvisionV1, 2, &with(Background::First, two)).contains("names the outputs 0, 1"));
        assert!(error(Kind::TorchvisionV1, 1, &labeled(&[])).contains("names the outputs none"));
        // COCO's names get COCO's ids.
        let coco: Vec<_> = parse(COCO).into_iter().map(|class| class.name).enumerate().collect();
        let coco: Vec<_> = coco.iter().map(|(row, name)| (*row, name.as_str())).collect();
        assert_eq!(named(Kind::Mmdetection, 80, &labeled(&coco))[79].1, 90);
        // The user's list goes first.
        let both = Hints { labels: tree.labels, ..listed(&["Palm"]) };
        assert_eq!(named(Kind::TorchvisionV1, 1, &both), [(0, 7, "Palm".to_owned())]);
    }
}
