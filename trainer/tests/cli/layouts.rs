//! `check`, `fit` and `eval` on one data set in the layouts that other tools export.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use models::dataset::{Annotation, Dataset, OnProblem, Rectangle};
use models::spec::Class;
use serde_json::{Value, json};

use crate::project::{CONFIG, Project, stderr, trainer};

/// Names of the two parts in our generated data and in the layouts.
const PARTS: [&str; 2] = ["train", "val"];

const CLASSES: [&str; 2] = ["disk", "ring"];

/// A layout: its name, and a function that writes a part in it into a folder and returns the `--data` of the part.
type Layout = (&'static str, fn(&Dataset, &Path, &str) -> PathBuf);

const LAYOUTS: [Layout; 7] = [
    ("COCO", |part, folder, name| {
        copy_images(part, &folder.join("images"), plain_name);
        let file = folder.join(format!("annotations/instances_{name}.json"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        part.write_coco(&file).unwrap();
        file
    }),
    ("Roboflow COCO", |part, folder, name| {
        let folder = folder.join(name);
        let rename = |image: usize| format!("{image:05}_png.rf.{image:032x}.png");
        copy_images(part, &folder, rename);
        let file = folder.join("_annotations.coco.json");
        part.write_coco(&file).unwrap();
        let mut coco: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        for (index, image) in coco["images"].as_array_mut().unwrap().iter_mut().enumerate() {
            image["file_name"] = rename(index).into();
        }
        // Roboflow puts a class for all others before them.
        coco["categories"].as_array_mut().unwrap().insert(0, json!({ "id": 0, "name": "shapes" }));
        fs::write(&file, coco.to_string()).unwrap();
        folder
    }),
    ("TensorFlow CSV", |part, folder, name| {
        let folder = folder.join(name);
        copy_images(part, &folder, plain_name);
        let mut text = "filename,width,height,class,xmin,ymin,xmax,ymax\n".to_owned();
        for (image, class, Rectangle { x, y, width, height }) in boxes(part) {
            writeln!(text, "{},64,64,{class},{x},{y},{},{}", plain_name(image), x + width, y + height).unwrap();
        }
        let file = folder.join("_annotations.csv");
        fs::write(&file, text).unwrap();
        file
    }),
    ("CVAT YOLO", |part, folder, name| {
        let folder = folder.join(name);
        copy_images(part, &folder.join("obj_train_data"), plain_name);
        write_labels(part, &folder.join("obj_train_data"));
        let names = part.classes().iter().map(|class| format!("{}\n", class.name)).collect::<String>();
        fs::write(folder.join("obj.names"), names).unwrap();
        fs::write(folder.join("obj.data"), "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n").unwrap();
        fs::write(folder.join("train.txt"), "data/obj_train_data/00000.png\n").unwrap();
        folder
    }),
    ("Ultralytics YOLO", |part, folder, name| {
        copy_images(part, &folder.join("images").join(name), plain_name);
        write_labels(part, &folder.join("labels").join(name));
        let names: Vec<_> = part.classes().iter().map(|class| &class.name).collect();
        fs::write(folder.join("data.yaml"), format!("train: images/train\nval: images/val\nnames: {names:?}\n"))
            .unwrap();
        folder.join("labels").join(name)
    }),
    ("VOC", |part, folder, name| {
        let folder = folder.join(name);
        copy_images(part, &folder.join("JPEGImages"), plain_name);
        write_voc(part, &folder.join("Annotations"), plain_name);
        folder
    }),
    ("nested VOC", |part, folder, name| {
        // Images in two folders have the same names.
        let nested = |image: usize| format!("camera {}/{:03}.png", image % 2, image / 2);
        let folder = folder.join(name);
        copy_images(part, &folder.join("JPEGImages"), nested);
        write_voc(part, &folder.join("Annotations"), nested);
        folder
    }),
];

fn plain_name(image: usize) -> String {
    format!("{image:05}.png")
}

/// Image, name of the class, and box of every object.
fn boxes(part: &Dataset) -> impl Iterator<Item = (usize, &str, Rectangle)> {
    let class = |index: usize| part.classes()[index].name.as_str();
    part.annotations().iter().map(move |object| (object.image, class(object.class_index), object.rectangle))
}

fn copy_images(part: &Dataset, folder: &Path, name: impl Fn(usize) -> String) {
    for image in 0..part.images().len() {
        let path = folder.join(name(image));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(part.path_of(image), path).unwrap();
    }
}

fn write_labels(part: &Dataset, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for image in 0..part.images().len() {
        let lines = part.annotations_of(image).iter().map(|object| {
            let Rectangle { x, y, width, height } = object.rectangle;
            let numbers =
                [x + width / 2.0, y + height / 2.0, width, height].map(|pixels| format!(" {:.6}", pixels / 64.0));
            format!("{}{}\n", object.class_index, numbers.concat())
        });
        fs::write(folder.join(plain_name(image)).with_extension("txt"), lines.collect::<String>()).unwrap();
    }
}

fn write_voc(part: &Dataset, folder: &Path, name: impl Fn(usize) -> String) {
    for image in 0..part.images().len() {
        let path = folder.join(name(image)).with_extension("xml");
        let file_name = Path::new(&name(image)).file_name().unwrap().to_string_lossy().into_owned();
        let mut text = format!("<annotation><filename>{file_name}</filename>");
        for (_, class, Rectangle { x, y, width, height }) in boxes(part).filter(|(of, ..)| *of == image) {
            let edges = [("xmin", x), ("ymin", y), ("xmax", x + width), ("ymax", y + height)];
            let edges = edges.map(|(edge, value)| format!("<{edge}>{value}</{edge}>")).concat();
            write!(text, "<object><name>{class}</name><bndbox>{edges}</bndbox></object>").unwrap();
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text + "</annotation>").unwrap();
    }
}

fn run(folder: &Path, arguments: &[&str]) {
    let output = trainer(folder, arguments);
    assert!(output.status.success(), "{}: {arguments:?}: {}", folder.display(), stderr(&output));
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_data_set_is_the_same_in_every_layout() {
    let folder = Project::new();
    let parts = PARTS.map(|name| {
        let file = folder.path().join(format!("shapes/{name}.json"));
        let (drawn, _) = Dataset::read_coco(&file, OnProblem::Refuse).unwrap();
        let rectangle =
            |class_index: usize| Rectangle { x: 3.0, y: 5.0 + class_index as f64, width: 32.0, height: 24.0 };
        // Every image has an object of each class, because some layouts know classes and images by their objects only.
        let object = |image: usize, class_index: usize| Annotation {
            id: (CLASSES.len() * image + class_index) as i64 + 1,
            image,
            class_index,
            rectangle: rectangle(class_index),
            area: rectangle(class_index).area(),
            crowd: false,
            difficult: false,
        };
        let objects = (0..drawn.images().len()).flat_map(|image| [object(image, 0), object(image, 1)]).collect();
        let classes = (1..).zip(CLASSES).map(|(id, name)| Class { id, name: name.to_owned() }).collect();
        Dataset::new(folder.path().join("shapes").join(name), drawn.images().to_vec(), objects, classes).unwrap()
    });
    let [boxes, objects] = [0, 1].map(|part: usize| parts[part].annotations().len());
    let run_and_model = CONFIG[CONFIG.find("\nrun:").unwrap()..].replace("epochs: 2", "epochs: 1");
    for (layout, write) in LAYOUTS {
        let own = folder.path().join(layout);
        let data = [0, 1].map(|part| write(&parts[part], &own, PARTS[part]));
        let [train, validation] = [0, 1].map(|part: usize| format!("{{annotations: '{}'}}", data[part].display()));
        let config = format!("data: {{train: {train}, validation: {validation}}}{run_and_model}");
        fs::write(own.join("retinanet.yaml"), config).unwrap();

        run(&own, &["check", "--json", "check.json"]);
        let check = read_json(&own.join("check.json"));
        assert_eq!((&check["refusals"], &check["train"]["problems"]), (&json!([]), &json!([])), "{layout}");
        assert_eq!(
            (&check["train"]["boxes"], &check["validation"]["boxes"]),
            (&boxes.into(), &objects.into()),
            "{layout}"
        );
        assert_eq!(check["train"]["images"], 6, "{layout}");

        run(&own, &["fit", "--out", "run"]);
        let checkpoint = "run/best.safetensors";
        let data = data[1].to_str().unwrap();
        run(&own, &["eval", "--checkpoint", checkpoint, "--data", data, "--voc-iou", "--json", "eval.json"]);
        let eval = read_json(&own.join("eval.json"));
        let counts = eval["classes"].as_array().unwrap().iter().map(|class| class["objects"].as_u64().unwrap());
        assert_eq!(counts.sum::<u64>(), objects as u64, "{layout}");
        assert!(eval["AP"].as_f64().unwrap() >= 0.0 && eval["voc"]["AP"].as_f64().unwrap() >= 0.0, "{layout}");
    }
}
