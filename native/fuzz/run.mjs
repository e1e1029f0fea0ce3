// Fuzzes the safetensors reader: `node native/fuzz/run.mjs [--seconds 60] [--driver]`. With clang's libFuzzer where it is
// installed, otherwise (or with --driver) with the mutation loop in driver.cc, always under ASan and UBSan. Inputs that
// cover new code stay in build/fuzz/corpus, failing ones in build/fuzz.
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { compile, coreSources, findCompiler, root } from '../compile.mjs';

const args = process.argv.slice(2);
const at = args.indexOf('--seconds');
const seconds = at < 0 ? 60 : Number(args[at + 1]);
if (!(seconds > 0)) {
  console.error(`--seconds needs a positive number, found ${args[at + 1]}`);
  process.exit(2);
}

/** Small valid files: every kind of header member, each once. */
function seeds() {
  const file = (header, bytes) => {
    const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
    const head = Buffer.alloc(8);
    head.writeBigUInt64LE(BigInt(json.length));
    return Buffer.concat([head, json, Buffer.from(Array.from({ length: bytes }, (_, i) => (i * 37) & 255))]);
  };
  const tensor = (dtype, shape, begin, end) => ({ dtype, shape, data_offsets: [begin, end] });
  const sizes = {
    F64: 8,
    F32: 4,
    F16: 2,
    BF16: 2,
    I64: 8,
    I32: 4,
    I16: 2,
    I8: 1,
    U64: 8,
    U32: 4,
    U16: 2,
    U8: 1,
    BOOL: 1,
    C64: 8,
  };
  const every = {};
  let offset = 0;
  for (const [dtype, size] of Object.entries(sizes)) {
    every[dtype] = tensor(dtype, [2], offset, offset + 2 * size);
    offset += 2 * size;
  }
  return [
    file('{}', 0),
    file('{}      ', 0),
    file({ __metadata__: { format: 'pt', ids: '["a"]' } }, 0),
    file({ a: tensor('F32', [2, 3], 0, 24) }, 24),
    file({ __metadata__: { '': '' }, b: tensor('BF16', [], 4, 6), a: tensor('F16', [2, 1, 1], 0, 4) }, 6),
    file({ 'base_model.layers.0.q_proj.lora_A.weight': tensor('F32', [1, 2], 0, 8), z: tensor('U8', [0, 9], 8, 8) }, 8),
    file('{"\\u00e9\\ud83d\\ude00\\n":{"shape":[1],"data_offsets":[0,1],"dtype":"F8_E4M3"} }\n', 1),
    file({ f4: tensor('F4', [2, 2], 0, 2), f6: tensor('F6_E2M3', [4], 2, 5) }, 5),
    file(every, offset),
  ];
}

const folder = join(root, 'build/fuzz');
const corpus = join(folder, 'corpus');
const seedFolder = join(folder, 'seeds');
mkdirSync(corpus, { recursive: true });
mkdirSync(seedFolder, { recursive: true });
for (const [i, bytes] of seeds().entries()) writeFileSync(join(seedFolder, `seed-${i}`), bytes);

/** Whether clang++ can link libFuzzer: the compiler may be there without its runtime. */
function hasLibFuzzer() {
  const source = join(folder, 'probe.cc');
  writeFileSync(
    source,
    '#include <cstddef>\nextern "C" int LLVMFuzzerTestOneInput(const unsigned char*, size_t) { return 0; }\n',
  );
  const args = ['-fsanitize=fuzzer', source, '-o', join(folder, 'probe')];
  return spawnSync('clang++', args, { stdio: 'ignore' }).status === 0;
}

try {
  const libFuzzer = !args.includes('--driver') && hasLibFuzzer();
  const program = await compile({
    folder: join(folder, libFuzzer ? 'libfuzzer' : 'driver'),
    target: 'safetensors_fuzz',
    compiler: libFuzzer ? 'clang++' : findCompiler(),
    defines: {
      PLURALIGN_FUZZ: libFuzzer ? 'LIBFUZZER' : 'DRIVER',
      PLURALIGN_SANITIZE: 'address,undefined',
      CMAKE_BUILD_TYPE: 'RelWithDebInfo',
    },
    sources: [...coreSources(), 'native/fuzz/safetensors_fuzz.cc', ...(libFuzzer ? [] : ['native/fuzz/driver.cc'])],
    flags: [
      `-fsanitize=${libFuzzer ? 'fuzzer,' : ''}address,undefined`,
      '-fno-sanitize-recover=all',
      '-fno-omit-frame-pointer',
    ],
  });
  const options = [`-max_total_time=${seconds}`, `-artifact_prefix=${folder}/`];
  if (libFuzzer)
    options.push(`-dict=${join(root, 'native/fuzz/safetensors.dict')}`, '-max_len=4096', '-print_final_stats=1');
  console.error(
    `fuzzing the safetensors reader for ${seconds} s with ${libFuzzer ? 'libFuzzer' : 'the mutation loop'}`,
  );
  const run = spawnSync(program, [...options, corpus, seedFolder], { stdio: 'inherit' });
  if (run.signal) console.error(`safetensors_fuzz: killed by ${run.signal}`);
  process.exitCode = run.status ?? 1;
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
