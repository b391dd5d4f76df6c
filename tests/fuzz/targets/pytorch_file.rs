//! Arbitrary bytes as a PyTorch file or a pickle: an error, or tensors that can be read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pytorch_file::PyTorchFile;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = PyTorchFile::new(bytes.to_vec()) else { return };
    for (name, tensor) in file.tensors().iter().take(100) {
        let size = tensor.shape().iter().try_fold(1, |size: usize, side| size.checked_mul(*side));
        // Views may be larger than the file; an import compares shapes before it reads.
        if size.is_some_and(|size| size < 1 << 16) {
            let _ = file.read(name);
        }
    }
    for key in ["label_dict", "hyper_parameters", "meta"] {
        let _ = file.value(&[key]);
    }
});
