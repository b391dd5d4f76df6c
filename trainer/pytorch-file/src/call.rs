//! What the calls in a pickle stand for: tensors of PyTorch, arrays of numpy, dictionaries. All others make an [`Object`].

use super::pickle::{self, Machine, text};
use super::value::{Data, Dtype, Id, Object, Storage, Tensor, Value};

/// Maximum number of dimensions; PyTorch's is 64, convolutions have 4.
const MAX_DIMENSIONS: usize = 16;

/// The result of calling `function`.
///
/// # Errors
/// What is wrong, if the arguments are not those of the function.
pub(crate) fn call(machine: &Machine, function: Id, arguments: Id) -> Result<Value, String> {
    let Value::Global(global) = &machine.values[function] else { return Ok(Value::Object(Object::default())) };
    let Value::Tuple(arguments) = &machine.values[arguments] else {
        return Err("arguments that are no tuple".to_owned());
    };
    let (module, name) = (text(machine.bytes, &global.module), text(machine.bytes, &global.name));
    let argument = |index: usize| {
        let id = arguments.get(index).copied();
        id.ok_or_else(|| format!("`{module}.{name}` with {} arguments", arguments.len()))
    };
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Value::Dict(pairs(machine, arguments))),
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
            tensor(machine, [argument(0)?, argument(1)?, argument(2)?, argument(3)?])
        }
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
        | ("torch.nn.parameter" | "torch.nn", "Parameter" | "Buffer") => {
            Ok(machine.values[argument(0)?].clone_tensor())
        }
        ("torch._tensor", "_rebuild_from_type_v2") => {
            let (inner, arguments) = (argument(0)?, argument(2)?);
            // One level only: PyTorch never nests it.
            match &machine.values[inner] {
                Value::Global(global) if text(machine.bytes, &global.name) != "_rebuild_from_type_v2" => {
                    call(machine, inner, arguments)
                }
                _ => Ok(Value::Object(Object::default())),
            }
        }
        ("_codecs", "encode") => match &machine.values[argument(0)?] {
            Value::Text(range) => Ok(Value::Latin1(range.clone())),
            _ => Err("bytes that are no text".to_owned()),
        },
        ("numpy", "dtype") => {
            let code = word(machine, argument(0)?).unwrap_or_default();
            Ok(Dtype::of_numpy(code).map_or_else(|| Value::Object(Object::default()), Value::Dtype))
        }
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Ok(Value::Array),
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => {
            let fortran = word(machine, argument(3)?) == Some("F");
            array(machine, argument(2)?, argument(1)?, fortran, argument(0)?)
        }
        _ => Ok(Value::Object(Object::default())),
    }
}

/// The value that replaces `target` when its state is set; none if it remains.
///
/// # Errors
/// What is wrong, if the state is not that of its class.
pub(crate) fn build(machine: &mut Machine, target: Id, state: Id) -> Result<Option<Value>, String> {
    // Classes with slots have their attributes in the first of two parts.
    let attributes = match &machine.values[state] {
        Value::Tuple(parts) if parts.len() == 2 => parts[0],
        _ => state,
    };
    if let Value::Object(object) = &mut machine.values[target] {
        object.state = Some(attributes);
        return Ok(None);
    }
    let Value::Tuple(parts) = &machine.values[state] else { return Ok(None) };
    match (&machine.values[target], parts.as_slice()) {
        (Value::Dtype(dtype), [_, order, ..]) => {
            let big_endian = word(machine, *order) == Some(">");
            Ok(Some(Value::Dtype(Dtype { big_endian, ..*dtype })))
        }
        (Value::Array, [_, shape, dtype, fortran, data]) => {
            let fortran = matches!(machine.values[*fortran], Value::Bool(true) | Value::Int(1));
            array(machine, *shape, *dtype, fortran, *data).map(Some)
        }
        _ => Ok(None),
    }
}

/// What a persistent id stands for: a storage, or the class of a module.
///
/// # Errors
/// What is wrong, if it is neither.
pub(crate) fn persistent(machine: &Machine, id: Id) -> Result<Value, String> {
    let wrong = || "a persistent id that PyTorch does not write".to_owned();
    let Value::Tuple(parts) = &machine.values[id] else { return Err(wrong()) };
    match (parts.first().and_then(|kind| word(machine, *kind)), parts.as_slice()) {
        (Some("module"), [_, class, ..]) => Ok(match &machine.values[*class] {
            Value::Global(global) => Value::Global(global.clone()),
            _ => return Err(wrong()),
        }),
        (Some("storage"), [_, class, key, _, count, rest @ ..]) => {
            let (Value::Global(class), Value::Text(name) | Value::Bytes(name), Some(_)) =
                (&machine.values[*class], &machine.values[*key], word(machine, *key))
            else {
                return Err(wrong());
            };
            let class = text(machine.bytes, &class.name);
            let Some(dtype) = Dtype::of_storage(class) else { return Ok(Value::Object(Object::default())) };
            let mut storage =
                Storage { key: name.clone(), dtype, count: size(machine, *count).ok_or_else(wrong)?, first: 0 };
            // A part of another storage: its key, its first element and its size.
            if let Some(Value::Tuple(view)) = rest.first().map(|view| &machine.values[*view])
                && let [_, first, count] = view.as_slice()
            {
                storage.first = size(machine, *first).ok_or_else(wrong)?;
                storage.count = size(machine, *count).ok_or_else(wrong)?;
            }
            Ok(Value::Storage(storage))
        }
        _ => Err(wrong()),
    }
}

fn tensor(machine: &Machine, [storage, offset, shape, strides]: [Id; 4]) -> Result<Value, String> {
    let Value::Storage(storage) = &machine.values[storage] else { return Ok(Value::Object(Object::default())) };
    let offset = size(machine, offset).ok_or_else(|| "a tensor without an offset".to_owned())?;
    let (shape, strides) = (sizes(machine, shape)?, sizes(machine, strides)?);
    if shape.len() != strides.len() {
        return Err(format!("a tensor with {} sizes and {} strides", shape.len(), strides.len()));
    }
    Ok(Value::Tensor(Tensor { data: Data::Storage(storage.clone()), dtype: storage.dtype, offset, shape, strides }))
}

fn array(machine: &Machine, shape: Id, dtype: Id, fortran: bool, data: Id) -> Result<Value, String> {
    let Value::Dtype(dtype) = machine.values[dtype] else { return Ok(Value::Object(Object::default())) };
    let data = match &machine.values[data] {
        Value::Bytes(range) => Data::Inline(range.clone()),
        Value::Text(range) | Value::Latin1(range) => Data::Latin1(range.clone()),
        _ => return Ok(Value::Object(Object::default())),
    };
    let shape = sizes(machine, shape)?;
    let mut strides = vec![1; shape.len()];
    let mut product: usize = 1;
    let mut order: Vec<usize> = (0..shape.len()).collect();
    if !fortran {
        order.reverse();
    }
    for axis in order {
        strides[axis] = product;
        product = product.checked_mul(shape[axis]).ok_or_else(|| "an array of an impossible size".to_owned())?;
    }
    Ok(Value::Tensor(Tensor { data, dtype, offset: 0, shape, strides }))
}

/// The entries of a dictionary that is built from a list of pairs.
fn pairs(machine: &Machine, arguments: &[Id]) -> Vec<(Id, Id)> {
    let Some(Value::List(list)) = arguments.first().map(|list| &machine.values[*list]) else { return Vec::new() };
    let pair = |id: &Id| match &machine.values[*id] {
        Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
        _ => None,
    };
    list.iter().filter_map(pair).collect()
}

fn word<'a>(machine: &Machine<'a>, id: Id) -> Option<&'a str> {
    pickle::word(machine.bytes, &machine.values[id])
}

fn size(machine: &Machine, id: Id) -> Option<usize> {
    match machine.values[id] {
        Value::Int(number) => usize::try_from(number).ok(),
        _ => None,
    }
}

/// The numbers of a tuple.
fn sizes(machine: &Machine, id: Id) -> Result<Vec<usize>, String> {
    match &machine.values[id] {
        Value::Tuple(sizes) | Value::List(sizes) if sizes.len() <= MAX_DIMENSIONS => {
            let sizes: Option<_> = sizes.iter().map(|id| size(machine, *id)).collect();
            sizes.ok_or_else(|| "a size that is no number".to_owned())
        }
        Value::Tuple(sizes) | Value::List(sizes) => Err(format!("a tensor with {} dimensions", sizes.len())),
        _ => Err("a tensor without a shape".to_owned()),
    }
}

impl Value {
    /// A tensor again, or an unknown object.
    fn clone_tensor(&self) -> Self {
        match self {
            Self::Tensor(tensor) => Self::Tensor(tensor.clone()),
            _ => Self::Object(Object::default()),
        }
    }
}
