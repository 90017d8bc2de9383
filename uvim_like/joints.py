"""The seventeen joints of a person in COCO's order: their names, what a mirror makes of them, and OKS spreads."""

NAMES = ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
         "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
         "right_ankle")

# Position of each joint's partner: in a mirrored picture the left elbow is a right one.
MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)

# Standard deviation of human annotation relative to the square root of a person's area (COCO's keypoint challenge).
SIGMAS = (.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089)
