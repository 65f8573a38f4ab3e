"""Draw H&E tiles of colorectal mucosa whose diagnosis is known to the pixel.

A slide is a strip of mucosa: crypts, bodies in three dimensions, stand on a lattice over the
muscularis mucosae and are cut by a plane. Upright, turned or distorted, a crypt is described once;
whether it shows as a tube, a ring or an island follows from the angle of the cut. The cut is filled
with cells, coloured by the Beer-Lambert law and divided into tiles. The label is never painted on:
`diagnose` reads it from the distortion of the crypts, `kind_of` from that, dysplasia and serration.

Sources: WHO Classification of Tumours, Digestive System (2019) for the criteria; Ruifrok &
Johnston, Anal Quant Cytol Histol 23:291 (2001) for the stain vectors. A teaching model of
hyperplastic polyps (HP), sessile serrated adenomas (SSA), normal mucosa and tubular adenomas of low
grade, not for diagnosis.
"""
