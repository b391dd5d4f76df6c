//! Pickles that PyTorch, Python and attackers write. Files of PyTorch itself are in `trainer/tests/data`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use super::*;

/// A zip file as `torch.save` writes it: its folder, the pickle, and storage `0` with these numbers.
fn torch_zip(folder: &str, pickle: &[u8], numbers: &[f32], method: zip::CompressionMethod) -> Vec<u8> {
    use std::io::Write;
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    let storage: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    for (name, content) in [("data.pkl", pickle), ("byteorder", b"little"), ("data/0", &storage)] {
        archive.start_file(format!("{folder}/{name}"), options).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn short(text: &str) -> Vec<u8> {
    [&[0x8C, text.len() as u8], text.as_bytes()].concat()
}

fn integers(numbers: &[u8]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|number| [b'K', *number]);
    [b'('].into_iter().chain(numbers).chain([b't']).collect()
}

/// `_rebuild_tensor_v2` on storage `0` with `count` elements.
fn tensor(count: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let parts: [&[u8]; 13] = [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &short("storage"),
        b"ctorch\nFloatStorage\n",
        &short("0"),
        &short("cpu"),
        &[b'K', count],
        b"tQ",
        &[b'K', offset],
        &integers(shape),
        &integers(strides),
        b"\x89ccollections\nOrderedDict\n)R",
        b"t",
        b"R",
    ];
    parts.concat()
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(name, value)| [short(name), value.clone(), vec![b's']].concat());
    b"\x80\x02}".iter().copied().chain(entries).chain([b'.']).collect()
}

fn numbers(file: &PyTorchFile, name: &str) -> Vec<f32> {
    let bytes = file.read(name).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

fn error(content: &[u8]) -> String {
    PyTorchFile::new(content.to_vec()).err().unwrap().to_string()
}

/// The error of a pickle with these instructions in a state dict.
fn pickle_error(instructions: &[u8]) -> String {
    error(&[b"\x80\x02}", short("w").as_slice(), instructions, b"s."].concat())
}

const STORED: zip::CompressionMethod = zip::CompressionMethod::Stored;

#[test]
fn views_and_transposed_tensors_are_gathered() {
    let tensors = [
        ("whole", tensor(6, 0, &[2, 3], &[3, 1])),
        ("transposed", tensor(6, 0, &[3, 2], &[1, 3])),
        ("part", tensor(6, 4, &[2], &[1])),
        ("expanded", tensor(6, 2, &[2, 2], &[0, 0])),
        ("scalar", tensor(6, 5, &[], &[])),
        ("empty", tensor(6, 0, &[0, 3], &[3, 1])),
    ];
    for method in [STORED, zip::CompressionMethod::Deflated] {
        let file = PyTorchFile::new(torch_zip("a", &dict(&tensors), &[0., 1., 2., 3., 4., 5.], method)).unwrap();
        assert_eq!(numbers(&file, "whole"), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(numbers(&file, "transposed"), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(numbers(&file, "part"), [4., 5.]);
        assert_eq!(numbers(&file, "expanded"), [2.; 4]);
        assert_eq!((numbers(&file, "scalar"), numbers(&file, "empty")), (vec![5.], vec![]));
        assert_eq!((file.tensors()["transposed"].shape(), file.tensors()["part"].dtype()), (&[3, 2][..], "F32"));
    }
}

#[test]
fn archives_are_read_whatever_the_length_of_their_name() {
    let pickle = dict(&[("w", tensor(1, 0, &[1], &[1]))]);
    for length in 1..64 {
        assert!(PyTorchFile::new(torch_zip(&"a".repeat(length), &pickle, &[1.0], STORED)).is_ok(), "{length}");
    }
}

#[test]
fn files_that_expand_far_are_errors_and_equal_elements_are_not() {
    let expected = "it expands to more than 1024 MiB, over 64 times its size, which weights never do";
    let view = |shape: &[u8]| dict(&[("w", tensor(1, 0, shape, &vec![0; shape.len()]))]);
    assert!(PyTorchFile::new(torch_zip("a", &view(&[255, 255, 255]), &[1.0], STORED)).is_ok());
    assert_eq!(error(&torch_zip("a", &view(&[255, 255, 255, 17]), &[1.0], STORED)), expected);
    let often = [b"(".to_vec(), tensor(1, 0, &[255; 3], &[0; 3]), b"q\0".to_vec(), b"h\0".repeat(16), b"l".to_vec()];
    assert_eq!(error(&torch_zip("a", &dict(&[("w", often.concat())]), &[1.0], STORED)), expected);

    // In the central directory: the size of the last entry.
    let mut bomb = torch_zip("a", &view(&[1]), &[1.0], zip::CompressionMethod::Deflated);
    let header = bomb.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    bomb[header + 24..][..4].copy_from_slice(&0x7FFF_FFFF_u32.to_le_bytes());
    assert_eq!(error(&bomb), expected);
}

#[test]
fn tensors_outside_their_storage_are_errors() {
    for wrong in [tensor(6, 1, &[6], &[1]), tensor(7, 0, &[7], &[1]), tensor(6, 0, &[2, 2], &[5, 1])] {
        let content = torch_zip("a", &dict(&[("w", wrong)]), &[0.0; 6], STORED);
        assert_eq!(error(&content), "it is damaged: tensor `w` exceeds its storage");
    }
    let content = torch_zip("a", &dict(&[("w", tensor(6, 0, &[6], &[1, 1]))]), &[0.0; 6], STORED);
    assert!(error(&content).contains("a tensor with 1 sizes and 2 strides"));
}

#[test]
fn modules_and_parameters_have_the_names_of_a_state_dict() {
    let module = |tables: &[(&str, Vec<u8>)]| {
        let entries = tables.iter().flat_map(|(name, value)| [short(name), value.clone(), vec![b's']].concat());
        [b"cmine\nNet\n)\x81}".to_vec(), entries.collect(), vec![b'b']].concat()
    };
    let table = |entries: &[(&str, Vec<u8>)]| {
        let entries = entries.iter().flat_map(|(name, value)| [short(name), value.clone(), vec![b's']].concat());
        [b"ccollections\nOrderedDict\n)R".to_vec(), entries.collect()].concat()
    };
    let parameter = [
        b"ctorch._utils\n_rebuild_parameter\n(".to_vec(),
        tensor(1, 0, &[1], &[1]),
        b"\x88ccollections\nOrderedDict\n)RtR".to_vec(),
    ];
    let inner = module(&[
        ("training", vec![0x89]),
        ("_parameters", table(&[("weight", parameter.concat())])),
        ("_buffers", table(&[("mean", tensor(1, 0, &[], &[]))])),
        ("_modules", table(&[])),
        ("other", tensor(1, 0, &[], &[])),
    ]);
    let outer = module(&[("_parameters", table(&[])), ("_modules", table(&[("conv1", inner)]))]);
    let pickle = [b"\x80\x02".to_vec(), outer, b".".to_vec()].concat();
    let file = PyTorchFile::new(torch_zip("a", &pickle, &[7.0], STORED)).unwrap();
    assert_eq!(file.tensors().keys().collect::<Vec<_>>(), ["conv1.mean", "conv1.weight"]);
    assert_eq!(numbers(&file, "conv1.weight"), [7.0]);
}

#[test]
fn values_that_are_no_tensors_are_found_by_path() {
    let labels = [b"}".to_vec(), short("Tree"), b"K\x00s".to_vec()].concat();
    let config = [b"}".to_vec(), short("label_dict"), labels, b"s".to_vec()].concat();
    let pickle = dict(&[("w", tensor(1, 0, &[1], &[1])), ("hyper_parameters", config)]);
    let file = PyTorchFile::new(torch_zip("a", &pickle, &[1.0], STORED)).unwrap();
    assert_eq!(file.value(&["hyper_parameters", "label_dict"]).unwrap(), serde_json::json!({"Tree": 0}));
    assert_eq!(file.value(&["hyper_parameters", "epoch"]), None);
}

#[test]
fn harmful_pickles_are_errors_with_the_name_of_the_function() {
    assert!(pickle_error(b"cos\nsystem\n(X\x02\0\0\0ls\x85R").contains("`os.system`"));
    assert!(pickle_error(b"cposix\nsystem\n)R").contains("`posix.system`"));
    assert!(pickle_error(b"c__builtin__\neval\n)R").contains("`__builtin__.eval`"));
    let by_stack = [short("subprocess"), short("Popen.__init__"), b"\x93)R".to_vec()].concat();
    assert!(pickle_error(&by_stack).contains("`subprocess.Popen.__init__`"));
    assert_eq!(pickle_error(b"cmine\nNet\n)R"), "it contains no tensors, only `mine.Net`");
}

#[test]
fn pickles_that_are_deep_or_refer_to_themselves_are_errors_or_end() {
    // Nested tuples, which would overflow the stack of a reader that recurses, also when it frees them.
    let deep = [b"N".to_vec(), b"\x85".repeat(1_000_000)].concat();
    assert_eq!(pickle_error(&deep), "its pickle has more than 64 levels, more than weights have");
    // 2^50 paths through 50 lists.
    let doubling: Vec<u8> = (0..50).flat_map(|_| [0x94, b'2', 0x86]).collect();
    assert!(pickle_error(&[b"N".to_vec(), doubling].concat()).contains("1048576 entries"));
    // A list that contains itself.
    assert_eq!(pickle_error(b"]\x94h\x00a"), "it contains no tensors");
    assert!(pickle_error(&b"N0".repeat(5_000_000)).contains("4194304 values"));
}

#[test]
fn copies_of_lists_and_tensors_are_bounded() {
    let pairs = [b"]q\0(".to_vec(), b"NN\x86".repeat(1000), b"e0".to_vec()].concat();
    let copies = [b"ccollections\nOrderedDict\nq\x010".to_vec(), b"h\x01h\0\x85R0".repeat(5000)].concat();
    assert!(pickle_error(&[pairs, copies].concat()).contains("4194304 values or entries"));
    let parameter = [tensor(1, 0, &[1; 16], &[1; 16]), b"\x85q\x000ctorch._utils\n_rebuild_parameter\nq\x010".to_vec()];
    let copies = b"h\x01h\0R0".repeat(140_000);
    let pickle = [b"\x80\x02".to_vec(), parameter.concat(), copies].concat();
    assert!(error(&torch_zip("a", &pickle, &[1.0], STORED)).contains("4194304 values or entries"));
}

#[test]
fn long_names_are_errors() {
    let long = |length: usize| [b"X".as_slice(), &(length as u32).to_le_bytes(), &b"n".repeat(length)].concat();
    let global = |length| [short("mine"), long(length), b"\x93".to_vec()].concat();
    assert_eq!(pickle_error(&global(1024)), "it contains no tensors");
    assert!(pickle_error(&global(1025)).ends_with("a name of more than 1024 bytes"));
    let key = |length| {
        let class = b"ctorch\nFloatStorage\n".to_vec();
        [b"(".to_vec(), short("storage"), class, long(length), b"NK\x01tQ".to_vec()].concat()
    };
    assert_eq!(pickle_error(&key(1024)), "it contains no tensors, only `torch.FloatStorage`");
    assert!(pickle_error(&key(1025)).ends_with("a persistent id that PyTorch does not write"));
}

#[test]
fn values_behind_too_many_bytes_of_keys_are_none() {
    let find = |count: usize| {
        let key = [b"X\0\x04\0\0".as_slice(), &b"k".repeat(1024), b"q\0N"].concat();
        let keys = [b"(".to_vec(), key, b"h\0N".repeat(count), short("x"), b"K\x01u".to_vec()].concat();
        let pickle = [b"\x80\x02}".to_vec(), keys, short("w"), tensor(1, 0, &[1], &[1]), b"s.".to_vec()].concat();
        PyTorchFile::new(torch_zip("a", &pickle, &[1.0], STORED)).unwrap().value(&["x"])
    };
    assert_eq!((find(1000), find(17_000)), (Some(serde_json::json!(1)), None));
}

#[test]
fn files_of_python_2_have_keys_that_are_bytes() {
    // As torch.save of PyTorch 1.4 on Python 2: SHORT_BINSTRING (U) for every str.
    let bytes = |text: &str| [&[b'U', text.len() as u8], text.as_bytes()].concat();
    let class = b"ctorch\nFloatStorage\n".to_vec();
    let storage = [b"(".to_vec(), bytes("storage"), class, bytes("94"), bytes("cpu")].concat();
    let parts: [&[u8]; 10] = [
        LEGACY,
        b"\x80\x02M\xe9\x03.\x80\x02}",
        &bytes("little_endian"),
        b"\x88s.\x80\x02}",
        &bytes("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        &[storage.as_slice(), b"K\x02NtQK\0K\x02\x85K\x01\x85\x89NtRs."].concat(),
        &[b"\x80\x02]".as_slice(), &bytes("94"), b"a."].concat(),
        &2u64.to_le_bytes(),
        &[1.5f32, -2.0].map(f32::to_le_bytes).concat(),
    ];
    let file = PyTorchFile::new(parts.concat()).unwrap();
    assert_eq!(numbers(&file, "w"), [1.5, -2.0]);
    let big = [parts[..3].concat(), b"\x89s.".to_vec()].concat();
    assert!(error(&big).contains("big-endian"));
}

#[test]
fn lengths_beyond_the_end_are_errors() {
    for instructions in [
        &b"X\xFF\xFF\xFF\xFF"[..],
        b"\x8D\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
        b"\x8E\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F",
        b"B\xFF\xFF\xFF\x7F",
        b"\x8B\xFF\xFF\xFF\xFF",
        b"cmine",
    ] {
        assert!(pickle_error(instructions).contains("exceeds its end"), "{instructions:?}");
    }
    for (instructions, part) in [
        (&b"R"[..], "the stack is empty"),
        (b"t", "no mark"),
        (b"h\x07", "an unknown entry of the memo"),
        (b"\xFF", "unknown instruction 0xff"),
        (b"X\x01\0\0\0\xFF", "not UTF-8"),
        (b"(Q", "the stack is empty"),
        (b"K\x01Q", "a persistent id"),
    ] {
        let message = error(&[b"\x80\x02", instructions].concat());
        assert!(message.contains(part), "{instructions:?}: {message}");
    }
}

#[test]
fn arrays_of_numpy_are_tensors_in_any_order_of_bytes_and_axes() {
    // pickle.dumps({"w": numpy.array([[1, 2, 3], [4, 5, 6]], dtype), "v": ...}, protocol=2) of numpy 2.4
    let array = |dtype: &str, order: &str, fortran: bool, bytes: &[u8]| {
        let latin1: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let parts: [&[u8]; 13] = [
            b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85c_codecs\nencode\n",
            &[short("b"), short("latin1")].concat(),
            b"\x86R\x87R(K\x01K\x02K\x03\x86cnumpy\ndtype\n",
            &short(dtype),
            b"\x89\x88\x87R(K\x03",
            &short(order),
            b"NNNJ\xFF\xFF\xFF\xFFJ\xFF\xFF\xFF\xFFK\0tb",
            if fortran { b"\x88" } else { b"\x89" },
            b"c_codecs\nencode\nX",
            &(latin1.len() as u32).to_le_bytes(),
            latin1.as_bytes(),
            &short("latin1"),
            b"\x86Rtb",
        ];
        parts.concat()
    };
    let little: Vec<u8> = (1..7).flat_map(|number| (number as f32).to_le_bytes()).collect();
    let big: Vec<u8> = (1..7).flat_map(|number| (number as f32).to_be_bytes()).collect();
    let columns: Vec<u8> = [1., 4., 2., 5., 3., 6.].iter().flat_map(|number: &f32| number.to_le_bytes()).collect();
    let file = PyTorchFile::new(dict(&[
        ("little", array("f4", "<", false, &little)),
        ("big", array("f4", ">", false, &big)),
        ("columns", array("f4", "<", true, &columns)),
    ]));
    let file = file.unwrap();
    for name in ["little", "big", "columns"] {
        assert_eq!(numbers(&file, name), [1., 2., 3., 4., 5., 6.], "{name}");
        assert_eq!(file.tensors()[name].shape(), [2, 3]);
    }
    // A character takes two bytes at most.
    assert!(PyTorchFile::new(dict(&[("w", array("f4", "<", false, &[0; 48]))])).is_ok());
    let long = error(&dict(&[("w", array("f4", "<", false, &[0; 49]))]));
    assert_eq!(long, "it is damaged: tensor `w` is smaller than its text");
}

#[test]
fn other_files_are_errors_that_say_what_they_are() {
    assert_eq!(error(b"weights"), "it is not a PyTorch file");
    assert!(error(b"").contains("not a PyTorch file"));
    assert!(error(&torch_zip("a", b"\x80\x02}.", &[], STORED)).contains("no tensors"));
    let mut empty_zip = b"PK\x05\x06".to_vec();
    empty_zip.resize(22, 0);
    assert!(error(&empty_zip).contains("not a PyTorch file"));
    let whole = torch_zip("a", &dict(&[("w", tensor(1, 0, &[1], &[1]))]), &[1.0], STORED);
    for length in 4..whole.len() {
        assert!(PyTorchFile::new(whole[..length].to_vec()).is_err(), "{length}");
    }
}
