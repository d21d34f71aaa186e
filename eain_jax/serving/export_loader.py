"""Scores a batch with the model in this folder: needs jax and numpy alone.

python load.py              scores golden.npz, and compares
python load.py BATCH.npz    prints the logits; export.json says what it holds
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export

HERE = Path(__file__).resolve().parent


def read(name):
  data = (HERE / name).read_bytes()
  stated = json.loads((HERE / 'manifest.json').read_bytes())['files'][name]
  if hashlib.sha256(data).hexdigest() != stated['sha256']:
    sys.exit(f'{HERE / name} was changed after it was written')
  return data


def make_program(facts, params, stablehlo):
  """What jax.export calls an Exported: the program, with its inputs."""
  sizes = dict(zip('RNU', export.symbolic_shape('R, N, U'), strict=True))
  batch = {
    name: jax.ShapeDtypeStruct(
      [sizes.get(d, d) for d in i['shape']], i['dtype']
    )
    for name, i in facts['inputs'].items()
  }
  # A program of the same inputs and outputs, in whose place ours is put.
  stub = lambda _, b: jax.numpy.zeros((b['user'].shape[0], 1), 'float32')
  return dataclasses.replace(
    export.export(
      jax.jit(stub, keep_unused=True), platforms=facts['platforms']
    )(params, batch),
    mlir_module_serialized=stablehlo,
    calling_convention_version=facts['calling_convention'],
  )


def load():
  """`score(batch)`: float32 logits [R, 1] of a dict of arrays."""
  facts, data = json.loads(read('export.json')), read('parameters.safetensors')
  start = 8 + int.from_bytes(data[:8], 'little')
  entries, data = json.loads(data[8:start]), memoryview(data)[start:]
  params = {
    name: np.frombuffer(
      data[slice(*entry['data_offsets'])],
      {'F32': '<f4', 'I32': '<i4'}[entry['dtype']],
    ).reshape(entry['shape'])
    for name, entry in entries.items()
    if name != '__metadata__'
  }
  program = make_program(facts, params, read('score.stablehlo'))
  params, score = jax.device_put(params), jax.jit(program.call)
  return lambda batch: score(
    params, {name: batch[name] for name in facts['inputs']}
  )


if __name__ == '__main__':
  file = sys.argv[1] if len(sys.argv) > 1 else HERE / 'golden.npz'
  with np.load(file, allow_pickle=False) as batch:
    logits, golden = np.asarray(load()(batch)), batch.get('logit')
  if golden is None:
    print(*logits[:, 0], sep='\n')
  else:
    error = (np.abs(logits - golden) / np.maximum(1, np.abs(golden))).max()
    print(f'{len(logits)} logits, largest difference {error:.1e}')
    tolerance = json.loads(read('export.json'))['tolerance']
    sys.exit(int(not error <= tolerance))
