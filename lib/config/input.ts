import type { z } from 'zod';

type AnySchema = z.core.$ZodType;
type Optional = { _zod: { optin: 'optional' | 'defaulted' } };
type RequiredKeys<Shape> = { [K in keyof Shape]: Shape[K] extends Optional ? never : K }[keyof Shape];

type InputOf<Shape> = { -readonly [K in keyof Shape]?: Input<Shape[K]> | undefined } & {
  -readonly [K in keyof Pick<Shape, RequiredKeys<Shape>>]: Input<Shape[K]>;
};

/** `z.input` by mappings that keep the keys' own comments, for editors to show; zod's filter keys, which loses them. */
export type Input<S> =
  S extends z.ZodObject<infer Shape, z.core.$strict>
    ? InputOf<Shape>
    : S extends z.ZodDefault<infer Inner> | z.ZodPrefault<infer Inner>
      ? Input<Inner>
      : S extends z.ZodNullable<infer Inner>
        ? Input<Inner> | null
        : S extends z.ZodArray<infer Element>
          ? Input<Element>[]
          : S extends z.ZodUnion<infer Options>
            ? Input<Options[number]>
            : S extends AnySchema
              ? z.input<S>
              : never;
