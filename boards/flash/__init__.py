"""A card that boots into a board with the bundle on it: from an operating system's image to a written, compared card.

The parts, in the order of the work: `source` (the image file), `partitions` and `contents` (what is in it), `device`
(where it goes), `identity` (who the board shall be), `plan` (what is done, or why not), `payload` and `firstboot` (what
is put on it), `card` (all of it, on a copy), `write` (and read back). `jetson` prepares NVIDIA's own tool for boards
that boot from soldered memory.

Two things are kept apart. *Who the board is* (user, key, hostname, Wi-Fi) is said in the words of the image's own first
boot, on its FAT partition. *What it runs* (bundle, runtime, wheels) lies on the root partition, the same way for every
image: one archive, two scripts and a unit that unpacks the archive once its user exists. So a new kind of first boot is
one function, a Jetson without a FAT partition is no exception, and NVIDIA's folder ``rootfs`` takes the same files.
"""
