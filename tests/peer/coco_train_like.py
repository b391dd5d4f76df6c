"""Writes a COCO file of the size of train2017: 118,287 images, 860,001 boxes with polygons, about 430 MB.

python3 tests/peer/coco_train_like.py FILE.json
"""

import json
import random
import sys

IMAGES, BOXES = 118_287, 860_001
random.seed(1)


def image(index):
    name = f"{index:012}.jpg"
    url = f"http://images.cocodataset.org/train2017/{name}"
    return {"license": 3, "file_name": name, "coco_url": url, "height": 480, "width": 640, "id": index + 1,
            "date_captured": "2013-11-14 11:18:45", "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg"}


def annotation(index):
    bbox = [round(random.uniform(low, high), 2) for low, high in ((0, 500), (0, 400), (5, 130), (5, 75))]
    polygon = [round(random.uniform(0, 640), 2) for _ in range(2 * random.randint(12, 28))]
    return {"segmentation": [polygon], "area": 0.6 * bbox[2] * bbox[3], "iscrowd": 0, "image_id": 1 + index % IMAGES,
            "bbox": bbox, "category_id": 1 + index % 80, "id": index + 1}


with open(sys.argv[1], "w") as file:
    def write(key, entries, end):
        file.write(f'"{key}": [')
        for place, entry in enumerate(entries):
            file.write((", " if place else "") + json.dumps(entry))
        file.write(end)

    file.write('{"info": {}, ')
    write("images", map(image, range(IMAGES)), "], ")
    write("annotations", map(annotation, range(BOXES)), "], ")
    write("categories", ({"supercategory": "any", "id": index, "name": f"class {index}"} for index in range(1, 81)), "]}")
