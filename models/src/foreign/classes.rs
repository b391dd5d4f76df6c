//! The classes of other projects' outputs.

use super::{ForeignError, Kind};
use crate::spec::Class;

/// Ids and names of COCO's 80 classes.
const COCO: &str = include_str!("../../specs/classes/coco.txt");

/// Indices and names of the 264 Open Images classes of MLPerf.
const MLPERF: &str = include_str!("../../specs/classes/mlperf.txt");

/// Number of torchvision's outputs for COCO: one for each id from 0 to 90, of which 80 are classes.
const TORCHVISION_COCO: usize = 91;

/// The outputs per anchor.
pub(super) struct Output {
    /// Their number in the file.
    pub(super) all: usize,
    /// Those that belong to a class.
    pub(super) rows: Vec<ClassOutput>,
}

/// An output that belongs to a class.
pub(super) struct ClassOutput {
    /// Index among the outputs of an anchor.
    pub(super) row: usize,
    pub(super) class: Class,
}

/// The classes of `all` outputs per anchor. `listed` replaces the classes assumed from the kind and the number of outputs.
pub(super) fn outputs(kind: Kind, all: usize, listed: Option<&[Class]>) -> Result<Output, ForeignError> {
    // torchvision's labels start at 1: output 0 is the background, which is never trained.
    let first = match kind {
        Kind::TorchvisionV1 | Kind::TorchvisionV1Coco | Kind::TorchvisionV2 => 1,
        Kind::TorchvisionBackbone | Kind::Yhenon | Kind::Mlperf => 0,
    };
    let count = all.saturating_sub(first);
    let known = match (kind, all) {
        (_, TORCHVISION_COCO) if first == 1 => Some(parse(COCO)),
        (Kind::Yhenon, 80) => Some(parse(COCO)),
        (Kind::Mlperf, 264) => Some(parse(MLPERF)),
        _ => None,
    };
    let rows = match (listed, known) {
        (Some(listed), _) if listed.len() != count => {
            return Err(ForeignError::Classes { outputs: count, listed: listed.len() });
        }
        (Some(listed), _) => (first..).zip(listed.to_vec()).collect(),
        // The index of an output is its COCO id.
        (None, Some(classes)) if first == 1 => classes.into_iter().map(|class| (class.id as usize, class)).collect(),
        (None, Some(classes)) => (first..).zip(classes).collect(),
        (None, None) => {
            (first..all).map(|row| (row, Class { id: row as i64, name: format!("class {row}") })).collect::<Vec<_>>()
        }
    };
    Ok(Output { all, rows: rows.into_iter().map(|(row, class)| ClassOutput { row, class }).collect() })
}

/// Parses lines of an id, a tab and a name.
fn parse(text: &str) -> Vec<Class> {
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    lines.filter_map(|(id, name)| Some(Class { id: id.parse().ok()?, name: name.to_owned() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: Kind, all: usize) -> Vec<(usize, i64, String)> {
        let output = outputs(kind, all, None).unwrap();
        output.rows.into_iter().map(|row| (row.row, row.class.id, row.class.name)).collect()
    }

    #[test]
    fn outputs_of_published_weights_get_class_names() {
        let torchvision = named(Kind::TorchvisionV2, 91);
        assert_eq!(torchvision.len(), 80);
        assert_eq!(torchvision[0], (1, 1, "person".to_owned()));
        assert_eq!(torchvision[79], (90, 90, "toothbrush".to_owned()));
        assert!(torchvision.iter().all(|(row, id, _)| *row as i64 == *id));
        let yhenon = named(Kind::Yhenon, 80);
        assert_eq!((yhenon.len(), &yhenon[79]), (80, &(79, 90, "toothbrush".to_owned())));
        let mlperf = named(Kind::Mlperf, 264);
        assert_eq!((mlperf.len(), &mlperf[0]), (264, &(0, 0, "Airplane".to_owned())));
        assert_eq!(mlperf[263].1, 263);
    }

    #[test]
    fn unknown_classes_are_numbered_and_the_background_is_not_a_class() {
        assert_eq!(named(Kind::TorchvisionV1, 3), [(1, 1, "class 1".to_owned()), (2, 2, "class 2".to_owned())]);
        assert_eq!(named(Kind::Yhenon, 1), [(0, 0, "class 0".to_owned())]);
        assert!(named(Kind::TorchvisionV1, 0).is_empty() && named(Kind::Yhenon, 0).is_empty());
    }

    #[test]
    fn listed_classes_must_match_the_number_of_outputs() {
        let listed = ["cell", "platelet"].map(|name| Class { id: 7, name: name.to_owned() });
        let output = outputs(Kind::TorchvisionV1, 3, Some(&listed)).unwrap();
        assert_eq!((output.rows[1].row, &output.rows[1].class), (2, &listed[1]));
        let error = outputs(Kind::Yhenon, 3, Some(&listed)).err().unwrap().to_string();
        assert!(error.contains("3 classes") && error.contains('2'), "{error}");
    }
}
