#!/usr/bin/env node
import { quietBrokenPipes } from './output.js';
import { run } from './program.js';

quietBrokenPipes();
process.exitCode = await run(process.argv.slice(2));
