"""Endings of file names by which media are found."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Pictures that are read."""
UNREAD_IMAGES = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".exr", ".gif", ".jp2")
"""Pictures that nothing here reads; a folder of them alone says so."""
_VIDEOS = (
    ".mp4 .mov .m4v .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .m2t .wmv .asf .flv .f4v .3gp .3g2 .ogv .vob .mxf .qt"
    " .m2v .divx .dv .insv .lrv"
)
VIDEOS = tuple(_VIDEOS.split())
"""Videos, the usual endings first."""
