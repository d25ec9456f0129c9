"""The layouts of images that fastcifar reads, for messages, and the suffixes of archives."""

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar")
ACCEPTED = (
    "the published archive (cifar-100-python.tar.gz, cifar-100-binary.tar.gz, cifar-10-python.tar.gz, "
    "cifar-10-binary.tar.gz), the folder extracted from one, an .npz or a folder of .npy files "
    "(train_images, train_labels, test_images, test_labels), an image folder ({train,test}/<class>/*.png), or Parquet "
    "or Arrow files as Hugging Face has them (train-*.parquet and test-*.parquet, or what save_to_disk writes)"
)
SAVE_AS_NPZ = (
    "make an .npz of it: np.savez(FILE, train_images=..., train_labels=..., test_images=..., test_labels=...), "
    "images as uint8 [N, S, S, 3], or [N, S, S] for grey ones"
)
