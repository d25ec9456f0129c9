"""The layouts of images that fastcifar reads, for messages, and the suffixes of archives."""

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar")
ACCEPTED = """
    a published archive, cifar-{100,10}-{python,binary}.tar.gz
    the folder extracted from one
    an .npz: train_images, train_labels, test_images, test_labels
    a folder of .npy files with these names
    an image folder: {train,test}/<class>/*.png
    Parquet or Arrow files as Hugging Face has them:
      {train,test}-*.parquet, or what save_to_disk writes"""
"""A layout on a line; it begins with a line's end."""
SAVE_AS_NPZ = (
    "make an .npz of it: np.savez(FILE, train_images=..., train_labels=..., test_images=..., test_labels=...), "
    "images as uint8 [N, S, S, 3], or [N, S, S] for grey ones"
)
